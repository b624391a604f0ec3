"""Ready or not: a real read, at most once a second, for as many as ask."""

from __future__ import annotations

import asyncio

import pytest

from ratelimit.dynamodb import DynamoDBStore
from ratelimit.http import health
from ratelimit.http.health import Readiness
from ratelimit.testing import FakeClock
from tests.faults import Behaviour, FaultServer, error, hang_up, internal_error, slow, throttled


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
    monkeypatch.setattr(health, "DEADLINE_S", 0.05)
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
