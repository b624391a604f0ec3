"""Who opens the store, and what happens when it will not open."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import Depends
from fastapi.routing import APIRoute
from mangum import Mangum
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ratelimit import (
    Limiter,
    Policy,
    RateLimitMiddleware,
    StoreUnavailable,
    TableNotFound,
    UnknownAction,
    UsageLog,
    limited,
    open_store,
)
from ratelimit.http.lifespan import RETRY_AFTER
from ratelimit.names import Key
from ratelimit.store import Outcome, Write
from ratelimit.testing import FakeClock
from tests.engines import Engine
from tests.http.apps import LAMBDA_EVENT, call, client_of, hello, lifespan_of, limiter_of, scope_of
from tests.limiter.stores import CountingStore, YieldingStore
from tests.turns import settled
from tests.usage.stores import ScriptedEvents, down, scripted


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
    sent: list[Message] = []
    with pytest.raises(TableNotFound):
        async with lifespan_of(RateLimitMiddleware(app_noting(store), limiter=limiter_of(store=store))) as sent:
            pass
    message = "ratelimit: there is no table 'limits' in eu-west-1"
    assert sent == [{"type": "lifespan.startup.failed", "message": message}]
    assert store.seen == ["open"]
    assert "no table 'limits'" in caplog.text


async def test_an_app_that_may_not_start_ends_what_it_has_begun() -> None:
    store = OpeningStore()
    app = app_noting(store)
    app.routes.append(APIRoute("/x", lambda: None, dependencies=[Depends(limited("hnit"))]))
    with pytest.raises(UnknownAction):
        async with lifespan_of(RateLimitMiddleware(app, limiter=limiter_of(store=store))):
            pass
    assert store.seen == ["open", "app starts", "app stops", "close"]


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


# Where nobody says that the process begins and ends: the limiter opens by itself, and nothing is left undone.


POLICIES = [Policy("hint", "2/day", match="POST /hints"), Policy("all", "unlimited", match="/**", log="none")]
ADDRESS = "ip:192.0.2.1"


class Counters(YieldingStore):
    """Where each write takes some turns of the event loop; counts how often it was opened and closed."""

    def __init__(self) -> None:
        super().__init__()
        self.events: ScriptedEvents = ScriptedEvents()
        self.clock = FakeClock()

    async def fault(self) -> None:
        for _ in range(50):
            await asyncio.sleep(0)

    async def open(self) -> None:
        self.calls["open"] += 1

    async def close(self) -> None:
        self.calls["close"] += 1

    @property
    def used(self) -> dict[str, int]:
        """What is counted by now, by action, with nobody asking."""
        return {key.action: max(record.values()) for key, record in self.memory.records.items()}


def app_of(store: Counters, **options: Any) -> Starlette:
    async def hint(request: Request) -> PlainTextResponse:
        return PlainTextResponse("hello")

    limiter = Limiter(store, POLICIES, clock=store.clock)
    usage = UsageLog(store, clock=limiter.clock, flush_interval=3600)  # type: ignore[arg-type]
    app = Starlette(routes=[Route("/hints", hint, methods=["POST"])])
    app.add_middleware(RateLimitMiddleware, limiter=limiter, usage=usage, **options)
    return app


@pytest.fixture
def on_lambda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "hints")


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The one that Mangum runs for as long as an event takes, and no longer."""
    with asyncio.Runner() as runner:
        asyncio.set_event_loop(runner.get_loop())
        yield runner.get_loop()
        asyncio.set_event_loop(None)


def handle(app: ASGIApp, **options: Any) -> int:
    status: int = Mangum(app, **options)(LAMBDA_EVENT, {})["statusCode"]  # type: ignore[arg-type]
    return status


@pytest.mark.usefixtures("on_lambda", "loop")
def test_on_lambda_nothing_is_left_to_do_when_the_answer_is_there(caplog: pytest.LogCaptureFixture) -> None:
    store = Counters()
    handler = Mangum(app_of(store), lifespan="off")
    for number in (1, 2, 3):
        answer = handler(LAMBDA_EVENT, {})  # type: ignore[arg-type]
        assert answer["statusCode"] == (429 if number == 3 else 200)
        assert (len(store.events), store.used["hint"]) == (number, min(number, 2))
        assert store.used.get("all", 0) == min(number, 2), "which no answer waits for elsewhere"
        store.clock.advance(60)
    assert (store.calls["open"], store.calls["close"]) == (1, 0)
    assert not caplog.records


@pytest.mark.usefixtures("on_lambda", "loop")
def test_a_table_that_is_away_does_not_hold_up_a_function() -> None:
    store = Counters()
    store.events.always = down
    handler = Mangum(app_of(store), lifespan="off")
    assert [handler(LAMBDA_EVENT, {})["statusCode"] for _ in range(2)] == [200, 200]  # type: ignore[arg-type]
    store.events.always = None


@pytest.mark.usefixtures("on_lambda", "loop")
def test_with_a_lifespan_for_each_event_all_is_closed_each_time() -> None:
    store = Counters()
    app = app_of(store)
    assert [handle(app, lifespan="on") for _ in range(3)] == [200, 200, 429]
    assert (len(store.events), store.calls["open"], store.calls["close"]) == (3, 3, 3)


@pytest.mark.usefixtures("on_lambda")
async def test_a_server_in_a_function_has_a_lifespan_and_is_frozen_all_the_same() -> None:
    """As behind AWS's Lambda Web Adapter."""
    store = Counters()
    app = app_of(store)
    async with lifespan_of(app), client_of(app, address="192.0.2.1") as client:
        assert (await client.post("/hints")).status_code == 200
        assert (len(store.events), store.used) == (1, {"hint": 1, "all": 1})


async def test_elsewhere_an_answer_waits_for_none_of_that() -> None:
    store = Counters()
    app = app_of(store)
    async with lifespan_of(app), client_of(app, address="192.0.2.1") as client:
        assert (await client.post("/hints")).status_code == 200
        assert (len(store.events), store.used) == (0, {"hint": 1})


async def test_in_an_app_that_is_mounted_each_answer_waits_until_its_event_is_written() -> None:
    store = Counters()
    outer = Starlette(routes=[Mount("/api", app_of(store))])
    async with lifespan_of(outer), client_of(outer, address="192.0.2.1") as client:
        for number in (1, 2, 3):
            assert (await client.post("/api/hints")).status_code == (429 if number == 3 else 200)
            assert len(store.events) == number
