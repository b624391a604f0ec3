"""Where nobody says that the process begins and ends: the limiter opens by itself, and nothing is left undone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from mangum import Mangum
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from ratelimit import Limiter, Policy, RateLimitMiddleware, UsageLog
from ratelimit.testing import FakeClock
from tests.http.apps import client_of, lifespan_of
from tests.limiter.stores import YieldingStore
from tests.usage.stores import ScriptedEvents, down

POLICIES = [Policy("hint", "2/day", match="POST /hints"), Policy("all", "unlimited", match="/**", log="none")]
ADDRESS = "ip:192.0.2.1"
EVENT = {
    "version": "2.0",
    "rawPath": "/hints",
    "rawQueryString": "",
    "headers": {"host": "example.com"},
    "requestContext": {"http": {"method": "POST", "path": "/hints", "sourceIp": "192.0.2.1"}, "stage": "$default"},
    "isBase64Encoded": False,
}


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

    limiter = Limiter(store, POLICIES, clock=store.clock, deadline=30)
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
    status: int = Mangum(app, **options)(EVENT, {})["statusCode"]  # type: ignore[arg-type]
    return status


@pytest.mark.usefixtures("on_lambda", "loop")
def test_on_lambda_nothing_is_left_to_do_when_the_answer_is_there(caplog: pytest.LogCaptureFixture) -> None:
    store = Counters()
    handler = Mangum(app_of(store), lifespan="off")
    for number in (1, 2, 3):
        answer = handler(EVENT, {})  # type: ignore[arg-type]
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
    assert [handler(EVENT, {})["statusCode"] for _ in range(2)] == [200, 200]  # type: ignore[arg-type]
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
