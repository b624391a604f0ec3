"""A new configuration: what it changes, what it keeps, and what a bad one does not do."""

from __future__ import annotations

import asyncio
import logging
import threading
from asyncio import StreamReader, StreamWriter
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from ratelimit.cli.serve import ServeConfig
from ratelimit.dynamodb import DynamoDBStore
from ratelimit.errors import ConfigError, StoreUnavailable
from ratelimit.factory import build_limiter
from tests.engines import Engine
from tests.faults import FaultServer
from tests.server.running import running, until, write
from tests.server.sockets import scripted
from tests.usage.proxy import FlakyProxy


async def test_a_new_quota_holds_and_what_was_spent_stays_spent(tmp_path: Path) -> None:
    async with running(write(tmp_path, "2/day")) as service:
        assert await service.statuses(3) == [200, 200, 429]
        write(tmp_path, "3/day")
        answer = await service.admin.post("/reload")
        assert (answer.status_code, answer.json()) == (
            200,
            {"changed": ["policies.hint"], "restart": [], "workers": 1},
        )
        assert await service.statuses(2) == [200, 429]


async def test_a_bad_file_keeps_the_last_good_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(write(tmp_path, "2/day")) as service:
        former = service.sidecar.current
        path = write(tmp_path, "3/dya")
        answer = await service.admin.post("/reload")
        assert answer.status_code == 422
        assert answer.headers["content-type"] == "application/problem+json"
        assert "policies.hint.quotas: unknown unit 'dya'; did you mean 'day'?" in answer.json()["detail"]
        assert service.sidecar.current is former
        assert "the last good one holds: policies.hint.quotas" in caplog.text
        assert (await service.admin.get("/health")).json()["workers"]["0"]["configuration"] == "last good"
        path.unlink()
        with pytest.raises(ConfigError, match="no such file"):
            await service.sidecar.reload()
        assert await service.metric("ratelimit_reloads_total", result="rejected") == 2
        assert await service.statuses(3) == [200, 200, 429]
        write(tmp_path, "3/day")
        await service.sidecar.reload()
        assert await service.metric("ratelimit_reload_rejected") == 0
        assert (await service.admin.get("/health")).json()["workers"]["0"]["configuration"] == "as read"


@pytest.mark.parametrize("upstream", [None, "http://127.0.0.1:9"])
async def test_a_file_that_was_emptied_or_cut_short_lifts_no_limit(tmp_path: Path, upstream: str | None) -> None:
    path = write(tmp_path, "2/day")
    whole = path.read_text(encoding="utf-8")
    source = ServeConfig(config=path, upstream=upstream)
    async with running(path, source=source, upstream=upstream) as service:
        former = service.sidecar.current
        for rest in ("", "\n", whole[:20], whole.partition("[policies")[0], "deadline = " + "[" * 5000):
            path.write_text(rest, encoding="utf-8")
            answer = await service.admin.post("/reload")
            assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json"), rest
            assert service.sidecar.current is former
        path.write_text("", encoding="utf-8")
        told = (await service.admin.post("/reload")).json()["detail"]
        assert "nothing is limited: there is no policy" in told
        assert "if that is meant, with quotas = 'unlimited'" in told
        path.write_text(whole.replace("2/day", "unlimited"), encoding="utf-8")
        assert (await service.admin.post("/reload")).json()["changed"] == ["policies.hint"]


async def test_nothing_changed_is_nothing_done(tmp_path: Path) -> None:
    async with running(write(tmp_path)) as service:
        former = service.sidecar.current
        assert (await service.admin.post("/reload")).json()["changed"] == []
        assert service.sidecar.current is former


async def test_the_listener_itself_takes_a_restart(tmp_path: Path) -> None:
    path = write(tmp_path)
    async with running(path) as service:
        path.write_text(path.read_text().replace("127.0.0.1:0", "127.0.0.1:9"), encoding="utf-8")
        assert (await service.admin.post("/reload")).json() == {"changed": [], "restart": ["admin"], "workers": 1}
        path.write_text(path.read_text().replace("2/day", "3/day"), encoding="utf-8")
        both = {"changed": ["policies.hint"], "restart": ["admin"], "workers": 1}
        assert (await service.admin.post("/reload")).json() == both
        assert (await service.admin.get("/config")).json()["admin"] == "127.0.0.1:0"
        assert (await service.admin.post("/reload")).json() == {**both, "changed": []}


async def test_a_request_under_way_is_finished_by_the_configuration_it_began_with(tmp_path: Path) -> None:
    asked, answer_now = asyncio.Event(), asyncio.Event()

    async def slow(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await answer_now.wait()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        await writer.drain()

    async with scripted(slow) as upstream, running(write(tmp_path), upstream=f"http://{upstream}") as service:
        under_way = asyncio.create_task(service.app.post("/hints", headers={"x-api-key": "alice"}))
        await asyncio.wait_for(asked.wait(), 30)
        write(tmp_path, "1/day")
        await service.sidecar.reload()
        assert await service.metric("ratelimit_configurations") == 2
        assert (await service.app.post("/hints", headers={"x-api-key": "alice"})).status_code == 429
        answer_now.set()
        assert (await under_way).text == "ok"
        async with asyncio.timeout(30):
            while await service.metric("ratelimit_configurations") != 1:
                await asyncio.sleep(0.005)


async def test_what_is_under_way_at_the_end_is_not_waited_for(tmp_path: Path) -> None:
    async def silent(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.read()

    async with scripted(silent) as upstream:
        async with running(write(tmp_path), upstream=f"http://{upstream}") as service:
            under_way = asyncio.create_task(service.app.post("/hints", headers={"x-api-key": "alice"}))
            await until(lambda: service.sidecar.requests == 1)
            write(tmp_path, "1/day")
            await service.sidecar.reload()
        under_way.cancel()
        await asyncio.gather(under_way, return_exceptions=True)


async def test_counters_never_fall(tmp_path: Path) -> None:
    async with running(write(tmp_path, "1/day", "denial_cache = 60")) as service:
        assert await service.statuses(3) == [200, 429, 429]
        assert await service.metric("ratelimit_denials_cached_total") == 1
        write(tmp_path, "2/day", "denial_cache = 60")
        await service.sidecar.reload()
        assert await service.statuses(3) == [200, 429, 429]
        assert await service.metric("ratelimit_denials_cached_total") == 2
        assert await service.metric("ratelimit_decisions_total", policy="hint", outcome="denied") == 4


async def test_a_repeat_is_answered_the_same_after_a_reload(tmp_path: Path) -> None:
    async with running(write(tmp_path, "5/day")) as service:
        question: dict[str, Any] = {
            "json": {"user": "alice", "action": "hint"}, "headers": {"idempotency-key": "once"},
        }  # fmt: skip
        first = await service.app.post("/v1/check", **question)
        write(tmp_path, "6/day")
        await service.sidecar.reload()
        again = await service.app.post("/v1/check", **question)
        assert (first.status_code, again.content) == (200, first.content)
        assert (await service.app.post("/v1/peek", json=question["json"])).json()["used"] == 1


async def test_the_store_stays_open(tmp_path: Path) -> None:
    async with FaultServer() as server:
        url = f"dynamodb://limits?region=eu-west-1&endpoint={server.endpoint}"
        path = write(tmp_path, settings=f'store = "{url}"')
        async with running(path) as service:
            assert await service.statuses(1) == [200]
            store = service.sidecar.current.runtime.store
            assert isinstance(store, DynamoDBStore)
            connections = store.stats.connections
            for quotas in ("3/day", "4/day"):
                write(tmp_path, quotas, f'store = "{url}"')
                await service.sidecar.reload()
                assert await service.statuses(1) == [200]
            assert service.sidecar.current.runtime.store is store
            assert (store.stats.connections, server.received["DescribeTable"]) == (connections, 1)
            assert await service.metric("ratelimit_store_calls_total", operation="UpdateItem") == 3
        await until(lambda: server.connections == 0)


async def test_a_store_that_cannot_be_reached_is_not_moved_to(tmp_path: Path) -> None:
    async with running(write(tmp_path, "2/day")) as service:
        assert await service.statuses(1) == [200]
        write(tmp_path, settings='store = "dynamodb://limits?region=eu-west-1&endpoint=http://127.0.0.1:9"')
        assert (await service.admin.post("/reload")).status_code == 503
        with pytest.raises(StoreUnavailable):
            await service.sidecar.reload()
        assert await service.statuses(2) == [200, 429]


async def test_to_another_store_and_back(tmp_path: Path, engine: Engine) -> None:
    url = engine.store_url(f"sidecar-{uuid4().hex[:8]}", create="true")
    async with running(write(tmp_path, "1/day")) as service:
        assert await service.statuses(2) == [200, 429]
        write(tmp_path, "1/day", f'store = "{url}"')
        await service.sidecar.reload()
        assert await service.statuses(2) == [200, 429]
        assert (await service.admin.get("/health")).json()["workers"]["0"]["store"] == "dynamodb"
        write(tmp_path, "1/day")
        await service.sidecar.reload()
        # Another embedded store: the first one went with its configuration.
        assert await service.statuses(2) == [200, 429]
        assert await service.metric("ratelimit_store_calls_total", operation="UpdateItem") >= 1


async def test_events_in_memory_outlive_a_reload_while_the_store_is_down(tmp_path: Path, engine: Engine) -> None:
    table = f"sidecar-{uuid4().hex[:8]}"
    async with FlakyProxy(engine.endpoint, share=0, seed=1) as proxy:
        settings = f'usage = "memory"\nstore = "{engine.store_url(table, endpoint=proxy.endpoint, create="true")}"'
        async with running(write(tmp_path, "5/day", settings)) as service:
            assert await service.statuses(1) == [200]
            await proxy.refuse()
            assert await service.statuses(1) == [200]
            write(tmp_path, "6/day", settings)
            await service.sidecar.reload()
            await proxy.listen()
            usage = service.sidecar.current.runtime.usage
            assert usage is not None
            await asyncio.wait_for(usage.flush(), 60)
            assert (usage.stats.accepted, usage.stats.written, usage.stats.dropped) == (2, 2, 0)


async def test_a_usage_log_that_is_turned_off_is_written_out(tmp_path: Path) -> None:
    async with running(write(tmp_path, "5/day", 'usage = "memory"')) as service:
        assert await service.statuses(3) == [200, 200, 200]
        usage = service.sidecar.current.runtime.usage
        assert usage is not None
        write(tmp_path, "5/day", 'usage = "off"')
        await service.sidecar.reload()
        await until(lambda: usage.stats.written == 3)
        assert await service.metric("ratelimit_usage_written_total") == 3
        assert await service.statuses(1) == [200]
        assert usage.stats.accepted == 3


async def test_the_token_can_be_changed(tmp_path: Path) -> None:
    async with running(write(tmp_path, settings='admin_token = "first-secret-0001"')) as service:
        first, second = ({"authorization": f"Bearer {text}"} for text in ("first-secret-0001", "second-secret-002"))
        assert (await service.admin.get("/config", headers=first)).json()["admin_token"] == "***"
        write(tmp_path, settings='admin_token = "second-secret-002"')
        assert (await service.admin.post("/reload", headers=first)).json()["changed"] == ["admin_token"]
        assert (await service.admin.get("/config", headers=first)).status_code == 401
        assert (await service.admin.get("/config", headers=second)).status_code == 200


async def test_reloads_at_once_are_one_after_the_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with running(write(tmp_path, "2/day")) as service:
        write(tmp_path, "3/day")
        done = await asyncio.gather(*(service.sidecar.reload() for _ in range(5)))
        assert [each.changed for each in done] == [["policies.hint"], [], [], [], []]
        assert await service.statuses(4) == [200, 200, 200, 429]


async def test_after_the_end_there_is_nothing_to_reload(tmp_path: Path) -> None:
    async with running(write(tmp_path, "2/day")) as service:
        former = service.sidecar.current
    write(tmp_path, "3/day")
    assert (await service.sidecar.reload()).changed == []
    assert service.sidecar.current is former


async def test_requests_are_answered_while_a_reload_makes_its_policies_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ten thousand policies that takes most of a second."""
    async with running(write(tmp_path, "2/day")) as service:
        answered, compiling = threading.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def build(*args: Any, **options: Any) -> Any:
            loop.call_soon_threadsafe(compiling.set)
            assert answered.wait(60), "nobody was answered meanwhile"
            return build_limiter(*args, **options)

        monkeypatch.setattr("ratelimit.server.sidecar.build_limiter", build)
        write(tmp_path, "3/day")
        reloading = asyncio.create_task(service.sidecar.reload())
        await compiling.wait()
        assert await service.statuses(3) == [200, 200, 429]
        answered.set()
        assert (await reloading).changed == ["policies.hint"]
        assert await service.statuses(2) == [200, 429]


async def test_the_log_names_some_of_what_a_reload_has_changed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    several = "".join(f'\n[policies.p{number}]\nquotas = "5/day"\n' for number in range(100))
    path = write(tmp_path, "2/day")
    async with running(path) as service:
        path.write_text(path.read_text() + several)
        assert len((await service.sidecar.reload()).changed) == 100
    assert "policies.p19 and 80 more" in caplog.text
    assert "policies.p20" not in caplog.text
