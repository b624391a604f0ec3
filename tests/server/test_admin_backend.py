"""Ready or not: a real read, at most once a second, for as many as ask."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import uuid4

import pytest

from ratelimit.dynamodb import DynamoDBStore, Settings, delete_table
from ratelimit.server import admin_backend
from ratelimit.server.admin_backend import Readiness
from ratelimit.testing import FakeClock
from tests.engines import Engine
from tests.faults import Behaviour, FaultServer, error, hang_up, internal_error, slow, throttled
from tests.server.running import running, write


def on(server: FaultServer) -> DynamoDBStore:
    return DynamoDBStore(table="limits", region="eu-west-1", endpoint=server.endpoint, attempts=1)


async def test_asked_once_a_second_however_many_want_to_know() -> None:
    clock = FakeClock()
    async with FaultServer() as server, on(server) as store:
        ready = Readiness(lambda: store, clock)
        assert await asyncio.gather(*(ready.state() for _ in range(100))) == ["ok"] * 100
        assert server.received["GetItem"] == 1
        clock.advance(0.999)
        assert await ready.state() == "ok"
        assert server.received["GetItem"] == 1
        clock.advance(0.001)
        assert await ready.state() == "ok"
        assert server.received["GetItem"] == 2


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (hang_up(), "unavailable"),
        (internal_error(), "unavailable"),
        (throttled(), "ok"),
        (error("ResourceNotFoundException"), "table_not_found"),
        (error("ValidationException", "The provided key element does not match the schema"), "table_mismatch"),
        (error("AccessDeniedException"), "access_denied"),
    ],
)
async def test_what_is_wrong(answer: Behaviour, state: str, caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    async with FaultServer() as server, on(server) as store:
        ready = Readiness(lambda: store, clock)
        server.always(answer)
        for _ in range(3):
            assert await ready.state() == state
            clock.advance(1)
        said = [record for record in caplog.records if "not ready" in record.getMessage()]
        assert len(said) == (state != "ok"), "once, however often it is asked"
        server.recover()
        assert await ready.state() == "ok"


async def test_a_store_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_backend, "DEADLINE_S", 0.05)
    async with FaultServer() as server, on(server) as store:
        server.always(slow(60))
        assert await asyncio.wait_for(Readiness(lambda: store, FakeClock()).state(), 30) == "late"


async def test_one_who_gives_up_does_not_spoil_it_for_the_others() -> None:
    async with FaultServer() as server, on(server) as store:
        ready = Readiness(lambda: store, FakeClock())
        first, second = (asyncio.create_task(ready.state()) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        assert await second == "ok"
        assert server.received["GetItem"] == 1


async def test_over_http(tmp_path: Path, engine: Engine) -> None:
    table = f"sidecar-{uuid4().hex[:8]}"
    url = engine.store_url(table, create="true")
    async with running(write(tmp_path, settings=f'store = "{url}"')) as service:
        assert (await service.admin.get("/health/ready")).json() == {"status": "ready"}
        await delete_table(Settings(table=table, endpoint=engine.endpoint))
        async with asyncio.timeout(60):
            while (answer := await service.admin.get("/health/ready")).status_code == 200:
                await asyncio.sleep(0.05)
        assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
        assert answer.json()["detail"] == "The store cannot be used: table_not_found."
        assert table not in answer.text
        health = await service.admin.get("/health")
        assert (health.status_code, health.json()["status"]) == (200, "degraded")
        assert (await service.admin.get("/health/live")).status_code == 200


async def test_not_ready_before_the_start_and_when_it_leaves(tmp_path: Path) -> None:
    async with running(write(tmp_path)) as service:
        assert (await service.admin.get("/health/ready")).status_code == 200
        service.sidecar.stopping = True
        answer = await service.admin.get("/health/ready")
        assert (answer.status_code, answer.json()["detail"]) == (503, "The service is about to end.")
        assert (await service.admin.get("/health")).json()["status"] == "leaving"
        assert await service.statuses(1) == [200], "everything else goes on"
        service.sidecar.stopping, service.sidecar.running = False, False
        assert (await service.admin.get("/health/ready")).status_code == 503
