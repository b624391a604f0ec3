"""Who opens the store, and what happens when it will not open."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import httpx
import pytest
from starlette.applications import Starlette
from starlette.types import Message, Receive, Scope, Send

from ratelimit import UsageLog, open_store
from ratelimit.errors import StoreUnavailable, TableNotFound
from ratelimit.http import RateLimitMiddleware
from ratelimit.http.lifespan import RETRY_AFTER
from ratelimit.names import Key
from ratelimit.policy import Policy
from ratelimit.store import Outcome, Write
from ratelimit.testing import FakeClock
from tests.engines import Engine
from tests.http.apps import call, hello, lifespan_of, limiter_of, scope_of
from tests.limiter.stores import CountingStore
from tests.turns import settled
from tests.usage.stores import down, scripted


class OpeningStore(CountingStore):
    """Counts how often it was opened and closed; fails to open with `error`, and waits for `may_open`."""

    def __init__(self, *, error: Exception | None = None) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.error = error
        self.may_open = asyncio.Event()
        self.may_open.set()

    async def open(self) -> None:
        self.seen.append("open")
        await self.may_open.wait()
        if self.error is not None:
            raise self.error

    async def close(self) -> None:
        self.seen.append("close")


def app_noting(store: OpeningStore) -> Starlette:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        store.seen.append("app starts")
        yield
        store.seen.append("app stops")

    return Starlette(lifespan=lifespan)


async def test_open_before_the_app_starts_and_closed_after_it_stopped() -> None:
    store = OpeningStore()
    app = RateLimitMiddleware(app_noting(store), limiter=limiter_of(store=store))
    async with lifespan_of(app) as sent:
        assert store.seen == ["open", "app starts"]
        await call(app, scope_of())
        assert [message["type"] for message in sent] == ["lifespan.startup.complete"]
    assert store.seen == ["open", "app starts", "app stops", "close"]
    assert sent[-1] == {"type": "lifespan.shutdown.complete"}


async def test_a_store_that_will_never_answer_fails_the_start(caplog: pytest.LogCaptureFixture) -> None:
    store = OpeningStore(error=TableNotFound("there is no table 'limits' in eu-west-1"))
    async with lifespan_of(RateLimitMiddleware(app_noting(store), limiter=limiter_of(store=store))) as sent:
        pass
    message = "ratelimit: there is no table 'limits' in eu-west-1"
    assert sent == [{"type": "lifespan.startup.failed", "message": message}]
    assert store.seen == ["open"]
    assert "no table 'limits'" in caplog.text


async def test_a_store_that_is_away_lets_the_app_start_and_is_opened_later(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    store = OpeningStore(error=StoreUnavailable("connection refused"))
    app = RateLimitMiddleware(hello_or(app_noting(store)), limiter=limiter_of(store=store, clock=clock))
    async with lifespan_of(app) as sent:
        assert sent == [{"type": "lifespan.startup.complete"}]
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        for _ in range(3):
            await call(app, scope_of())
        assert store.seen.count("open") == 1
        store.error = None
        clock.advance(RETRY_AFTER / 1_000_000)
        for _ in range(3):
            await call(app, scope_of())
        assert store.seen.count("open") == 2


def hello_or(lifespan: Starlette) -> Starlette:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await (hello if scope["type"] == "http" else lifespan)(scope, receive, send)

    return app  # type: ignore[return-value]


async def test_opened_once_by_the_first_requests_where_no_lifespan_runs() -> None:
    store = OpeningStore()
    store.may_open.clear()
    app = RateLimitMiddleware(hello, limiter=limiter_of(store=store))
    requests = [asyncio.create_task(call(app, scope_of())) for _ in range(3)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert store.calls["apply"] == 0
    store.may_open.set()
    await asyncio.gather(*requests)
    assert (store.seen, store.calls["apply"]) == (["open"], 3)


async def test_requests_do_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ratelimit.http.lifespan.OPEN_WAIT_S", 0.01)
    store = OpeningStore()
    store.may_open.clear()
    app = RateLimitMiddleware(hello, limiter=limiter_of(store=store))
    start, _ = await call(app, scope_of())
    second = asyncio.create_task(call(app, scope_of()))
    await settled()
    assert second.done(), "only the first requests wait"
    assert (start["status"], store.seen) == (200, ["open"])
    store.may_open.set()


async def test_a_misconfigured_store_found_late_is_logged_and_checks_go_on(caplog: pytest.LogCaptureFixture) -> None:
    store = OpeningStore(error=TableNotFound("there is no table 'limits'"))
    app = RateLimitMiddleware(hello, limiter=limiter_of(store=store))
    start, _ = await call(app, scope_of())
    assert start["status"] == 200
    assert "no table 'limits'" in caplog.text


async def test_an_app_without_lifespan_is_as_it_was() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", "no lifespan here"
        await hello(scope, receive, send)

    store = OpeningStore()
    middleware = RateLimitMiddleware(app, limiter=limiter_of(store=store))
    lifespan = lifespan_of(middleware)
    assert await lifespan.__aenter__() == []
    await call(middleware, scope_of())
    with pytest.raises(AssertionError, match="no lifespan here"):
        await lifespan.__aexit__(None, None, None)
    assert store.seen == ["open", "close", "open"]


async def test_an_app_that_fails_to_start_says_so_itself() -> None:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        raise ZeroDivisionError
        yield

    store = OpeningStore()
    sent: list[Message] = []
    with pytest.raises(ZeroDivisionError):
        async with lifespan_of(
            RateLimitMiddleware(Starlette(lifespan=lifespan), limiter=limiter_of(store=store))
        ) as sent:
            pass
    assert [message["type"] for message in sent] == ["lifespan.startup.failed"]
    assert "ZeroDivisionError" in sent[0]["message"]
    assert store.seen == ["open", "close"]


async def test_refunds_under_way_arrive_before_the_store_closes() -> None:
    class SlowStore(OpeningStore):
        async def apply(self, key: Key, write: Write, *, now: int) -> Outcome:
            for _ in range(30):
                await asyncio.sleep(0)
            return await super().apply(key, write, now=now)

    store = SlowStore()
    limiter = limiter_of(Policy("hint", "5/day", match="/**", count="success"), store=store)
    app = RateLimitMiddleware(hello_or(app_noting(store)), limiter=limiter)
    async with lifespan_of(app):
        request = asyncio.create_task(call(app, scope_of(headers=[(b"x-status", b"500")])))
        while not len(app.refunds):
            await asyncio.sleep(0)
        request.cancel()  # its client has left
        await asyncio.wait({request})
        assert (store.seen, store.calls["apply"]) == (["open", "app starts"], 1)
    assert (store.seen[-1], store.calls["apply"]) == ("close", 2)
    await limiter.open()
    assert (await limiter.peek("ip:203.0.113.7", "hint")).used == 0


@pytest.mark.parametrize("kind", ["mounted", "of the outer app", "refused by the app", "off"])
async def test_no_event_is_lost_where_no_lifespan_tells_that_the_process_ends(engine: Engine, kind: str) -> None:
    url, user = engine.store_url(f"unattended-{uuid4().hex[:8]}", create="true"), "alice"
    command = (sys.executable, "-m", "tests.http.unattended", kind, url)
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    said = b""
    try:
        while b"running on" not in said:
            said += await process.stderr.readline()
            assert not process.stderr.at_eof(), said
        address = said.partition(b"running on ")[2].split()[0].decode()
        async with httpx.AsyncClient(base_url=address, timeout=60) as client:
            path = "/api/x" if kind in ("mounted", "of the outer app") else "/x"
            answers = await asyncio.gather(*(client.get(path, headers={"x-user": user}) for _ in range(20)))
            process.terminate()
        said += await process.stderr.read()
        await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
    assert [answer.status_code for answer in answers] == [200] * 20
    async with open_store(url) as store:
        assert len((await UsageLog(store).events(user)).events) == 20
    assert (b"no lifespan reaches" in said) == (kind != "of the outer app")
    assert said.count(b"no lifespan reaches") <= 1


async def test_where_nobody_says_that_the_process_ends_an_outage_does_not_hold_up_answers(
    pauses: list[float],
) -> None:
    store, events = scripted()
    events.always = down
    limiter = limiter_of(store=store)
    usage = UsageLog(store, clock=limiter.clock, max_wait=60)
    app = RateLimitMiddleware(hello, limiter=limiter, usage=usage)
    for _ in range(3):
        await asyncio.wait_for(call(app, scope_of()), 30)
    events.always = None
    await usage.flush()
    assert len(events) == 3
    await call(app, scope_of())
    assert len(events) == 4, "written before the answer was complete"
