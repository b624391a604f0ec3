"""The usage log behind the middleware: an event for each checked request, before its answer is complete, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from ratelimit import ConfigError, Limiter, MemoryStore, Policy, RateLimitMiddleware, UsageEvent, UsageLog, limited
from ratelimit.clock import DAY, HOUR, SECOND
from ratelimit.testing import FakeClock
from tests.http.apps import HINT, call, client_of, hello, limiter_of, scope_of

ALICE = "ip:203.0.113.7"


def logged(*policies: Policy, app: Any = hello, clock: FakeClock | None = None) -> tuple[Any, UsageLog, Limiter]:
    store = MemoryStore()
    limiter = limiter_of(*policies, store=store, clock=clock)
    usage = UsageLog(store, actions=limiter.policies, clock=limiter.clock)
    return RateLimitMiddleware(app, limiter=limiter, usage=usage), usage, limiter


async def events(usage: UsageLog, user: str = ALICE) -> list[UsageEvent]:
    """Oldest first."""
    await usage.flush()
    return list(reversed((await usage.events(user)).events))


async def test_every_checked_request_is_an_event() -> None:
    clock = FakeClock()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        clock.advance(0.25)
        await hello(scope, receive, send)

    app, usage, _ = logged(Policy("hint", "1/day", match="POST /hints"), app=slow, clock=clock)
    async with client_of(app) as client:
        await client.post("/hints", headers={"x-request-id": "r-1"})
        await client.post("/hints", headers={"x-request-id": "r-2"})
        await client.get("/free")
    first, second = await events(usage)
    assert (first.action, first.allowed, first.status, first.cost, first.resource) == ("hint", True, 200, 1, "/hints")
    assert (first.duration, first.request_id, first.metadata) == (250, "r-1", {})
    assert (second.allowed, second.status, second.request_id) == (False, 429, "r-2")


@pytest.mark.parametrize("step", [-2 * HOUR // SECOND, 100 * DAY // SECOND, 60 * 365 * DAY // SECOND])
async def test_a_clock_that_is_set_meanwhile_breaks_no_answer_and_loses_no_event(step: int) -> None:
    clock = FakeClock()
    before = clock.now()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        clock.advance(step)
        await hello(scope, receive, send)

    app, usage, _ = logged(Policy("hint", "1/day", match="POST /hints"), app=slow, clock=clock)
    async with client_of(app) as client:
        assert (await client.post("/hints")).status_code == 200
    await usage.flush()
    clock.advance(-step)
    (event,) = await events(usage)
    assert event.at_ms == before // 1000
    assert usage.stats.dropped == 0


async def test_an_event_that_cannot_be_kept_breaks_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    app, usage, _ = logged(Policy("hint", "1/day", match="POST /*"))
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope_of("/\udc80"), receive, send)
    assert sent[0]["status"] == 200
    assert usage.stats.dropped == 1
    assert "a usage event cannot be kept: resource is not valid Unicode" in caplog.text


@pytest.mark.parametrize(
    ("log", "kept"), [("all", [True, False]), ("allowed", [True]), ("denied", [False]), ("none", [])]
)
async def test_a_policy_says_what_is_logged(log: Any, kept: list[bool]) -> None:
    app, usage, _ = logged(Policy("hint", "1/day", match="POST /hints", log=log))
    async with client_of(app) as client:
        for _ in range(2):
            await client.post("/hints")
    assert [event.allowed for event in await events(usage)] == kept


async def test_refused_ones_may_be_sampled_and_allowed_ones_never_are(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    limiter = limiter_of(Policy("hint", "3/day", match="POST /hints", log_sample=0.5), store=store)
    usage = UsageLog(store, clock=limiter.clock)
    app = RateLimitMiddleware(hello, limiter=limiter, usage=usage)
    draws = iter([0.4, 0.6, 0.5, 0.1])
    monkeypatch.setattr("ratelimit.http.charges._draw", lambda: next(draws))
    async with client_of(app) as client:
        for _ in range(7):
            await client.post("/hints")
    assert [event.allowed for event in await events(usage)] == [True] * 3 + [False] * 2


@pytest.mark.parametrize(("count", "cost"), [("all", 2), ("success", 0), ("failure", 2)])
async def test_units_that_went_back_are_not_in_the_event(count: Any, cost: int) -> None:
    app, usage, _ = logged(Policy("hint", "5/day", match="POST /hints", count=count, cost=2))
    async with client_of(app) as client:
        await client.post("/hints", headers={"x-status": "500"})
    (event,) = await events(usage)
    assert (event.status, event.cost) == (500, cost)


async def test_events_and_totals_agree() -> None:
    app, usage, limiter = logged(Policy("hint", "5/day", match="POST /hints", count="success"))
    async with client_of(app) as client:
        for number in range(9):
            await client.post("/hints", headers={"x-status": "404" if number % 3 == 0 else "200"})
    spent = sum(event.cost for event in await events(usage) if event.allowed)
    totals = await limiter.totals(ALICE)
    assert sum(totals["hint"].values()) == spent


async def test_what_a_shadow_policy_would_have_refused_is_marked() -> None:
    app, usage, _ = logged(Policy("hint", "1/day", match="POST /hints", mode="shadow"))
    async with client_of(app) as client:
        for _ in range(2):
            assert (await client.post("/hints")).status_code == 200
    assert [event.metadata for event in await events(usage)] == [{}, {"shadow_denied": True}]


async def test_a_view_that_asks_is_logged_with_its_answer() -> None:
    hint = limited("hint", cost=3)

    async def view(request: Request) -> PlainTextResponse:
        await hint(request)
        return PlainTextResponse("here", 201)

    app, usage, _ = logged(Policy("hint", "5/day"), app=Starlette(routes=[Route("/hints", view)]))
    async with client_of(app) as client:
        for _ in range(2):
            await client.get("/hints")
    assert [(event.cost, event.allowed, event.status) for event in await events(usage)] == [
        (3, True, 201),
        (3, False, 429),
    ]


async def test_an_app_that_fails_is_logged_as_500() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError

    app, usage, _ = logged(app=broken)
    with pytest.raises(ZeroDivisionError):
        await call(app, scope_of())
    assert [event.status for event in await events(usage)] == [500]


async def test_two_middlewares_log_a_request_once() -> None:
    store = MemoryStore()
    limiter = limiter_of(HINT, Policy("all", "9/day", match="/**"), store=store)
    usage = UsageLog(store, clock=limiter.clock)
    inner = RateLimitMiddleware(hello, limiter=limiter_of(Policy("inner", "9/day", match="/**")), usage=usage)
    async with client_of(RateLimitMiddleware(inner, limiter=limiter, usage=usage)) as client:
        await client.post("/hints")
    assert sorted(event.action for event in await events(usage)) == ["all", "hint", "inner"]


async def test_the_event_is_kept_before_the_answer_is_complete(tmp_path: Path) -> None:
    store = MemoryStore()
    limiter = limiter_of(store=store)
    usage = UsageLog(store, clock=limiter.clock, durability="journal", journal_dir=tmp_path)
    accepted_at: list[tuple[str, int]] = []

    async def send(message: Message) -> None:
        accepted_at.append((message["type"], usage.stats.accepted))

    async def unused() -> Message:
        raise AssertionError

    async with usage:
        await RateLimitMiddleware(hello, limiter=limiter, usage=usage)(scope_of(), unused, send)
    assert accepted_at == [("http.response.start", 0), ("http.response.body", 1)]


async def test_a_websocket_is_logged_when_it_is_accepted() -> None:
    async def accepting(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})

    app, usage, _ = logged(Policy("hint", "1/day", match="/ws"), app=accepting)
    for _ in range(2):
        await call(app, scope_of("/ws", kind="websocket"))
    assert [(event.status, event.allowed) for event in await events(usage)] == [(101, True), (429, False)]


async def test_a_journal_that_cannot_be_used_keeps_the_app_from_starting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    store = MemoryStore()
    limiter = limiter_of(store=store)
    usage = UsageLog(store, clock=limiter.clock, durability="journal", journal_dir=tmp_path / "file" / "x")
    app = RateLimitMiddleware(hello, limiter=limiter, usage=usage)
    messages = iter([{"type": "lifespan.startup"}])
    sent: list[Message] = []

    async def receive() -> Message:
        return next(messages)

    async def send(message: Message) -> None:
        sent.append(message)

    with pytest.raises(ConfigError):
        await app({"type": "lifespan"}, receive, send)
    assert [message["type"] for message in sent] == ["lifespan.startup.failed"]
    assert "journal_dir" in sent[0]["message"]


@pytest.mark.parametrize("options", [{"log": "some"}, {"log_sample": 2}, {"log_sample": True}, {"log_sample": "1"}])
def test_bad_options_name_themselves(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        Policy("hint", "5/day", **options)
