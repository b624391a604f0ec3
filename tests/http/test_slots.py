"""Slots and reservations of requests: held until the answer has ended, however it ends, and back before it does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from anyio import CancelScope
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from ratelimit.directory import Directory
from ratelimit.errors import ConfigError, InvalidCost, NotHeld, RateLimitError
from ratelimit.http import RateLimitMiddleware, limited
from ratelimit.http.api import Api
from ratelimit.http.authz import Authz
from ratelimit.limiter import Limiter
from ratelimit.names import Key
from ratelimit.policy import Policy
from ratelimit.store import MemoryStore
from ratelimit.store.directory import User
from ratelimit.testing import FakeClock
from ratelimit.usage import UsageLog
from tests.http.apps import HINT, call, client_of, headers_of, hello, limiter_of, scope_of
from tests.limiter.stores import CountingStore, YieldingStore

USER = "ip:203.0.113.7"
EXPORT = Policy("hint", "2 concurrent; 5/day", match="/**")
TOKENS = Policy("hint", "1000/day", match="/**", cost=100, reserve=True)


async def held(limiter: Limiter, field: str = "c") -> int:
    return (await limiter.store.read(Key(USER, "hint"))).get(field, 0)


class Slow:
    """An app that answers in pieces, as it is told."""

    def __init__(self) -> None:
        self.started = asyncio.Semaphore(0)
        self.go_on = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        self.started.release()
        await self.go_on.wait()
        await send({"type": "http.response.body", "body": b"b"})


async def test_so_many_requests_at_the_same_time() -> None:
    limiter, app = limiter_of(EXPORT), Slow()
    guarded = RateLimitMiddleware(app, limiter=limiter)
    async with client_of(guarded) as client:
        requests = [asyncio.create_task(client.get("/")) for _ in range(2)]
        await app.started.acquire()
        await app.started.acquire()
        refused = await client.get("/")
        assert refused.status_code == 429
        assert (
            refused.headers["ratelimit-policy"]
            == '"hint-concurrent";q=2;qu="concurrent-requests", "hint-day";q=5;w=86400'
        )
        assert refused.headers["ratelimit"] == '"hint-concurrent";r=0'
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["violated-policies"] == ["hint-concurrent"]
        assert "allows 2 at the same time" in refused.json()["detail"]
        app.go_on.set()
        answers = await asyncio.gather(*requests)
        assert [answer.text for answer in answers] == ["ab", "ab"]
        assert await held(limiter) == 0
        assert (await client.get("/")).headers["ratelimit"] == '"hint-concurrent";r=1'
    assert (await limiter.peek(USER, "hint")).quotas[1].used == 3, "what was refused spent nothing"


async def test_it_is_back_before_the_client_has_all_of_the_answer() -> None:
    limiter = limiter_of(Policy("hint", "1 concurrent", match="/**"))
    seen: list[tuple[str, int]] = []

    async def send(message: Message) -> None:
        seen.append((message["type"], await held(limiter)))

    await RateLimitMiddleware(hello, limiter=limiter)(scope_of(), _nothing, send)
    assert seen == [("http.response.start", 1), ("http.response.body", 0)]


@pytest.mark.parametrize("ends", ["raises", "cancelled", "says nothing"])
async def test_however_the_request_ends(ends: str) -> None:
    limiter = limiter_of(EXPORT, store=CountingStore())
    reached = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        reached.set()
        if ends == "raises":
            raise RuntimeError
        if ends == "cancelled":
            await asyncio.Event().wait()

    task = asyncio.create_task(call(RateLimitMiddleware(app, limiter=limiter), scope_of()))
    await reached.wait()
    task.cancel()
    await asyncio.wait([task])
    assert await held(limiter) == 0


async def test_a_request_that_is_cancelled_at_each_of_its_waits_leaves_nothing_behind() -> None:
    """As anyio's scopes do it, and so Starlette's middlewares: its slot is back, and its event is kept."""
    store = YieldingStore()
    slots = Policy("hint", "2 concurrent; 5/day", match="/**")
    limiter = limiter_of(slots, Policy("paid", "5/day", match="/**", count="success"), store=store)
    usage = UsageLog(store.memory, clock=limiter.clock)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        cancelled.cancel()
        await asyncio.sleep(1)

    guarded = RateLimitMiddleware(app, limiter=limiter, usage=usage)
    async with usage:
        with CancelScope() as cancelled:
            await call(guarded, scope_of())
        await guarded.refunds.drain()
        await usage.flush()
    assert await held(limiter) == 0
    assert (await limiter.peek(USER, "paid")).used == 1  # nobody knows what the answer would have been
    assert {event.action: event.cost for event in store.events} == {"hint": 1, "paid": 1}


async def test_a_client_that_leaves_in_the_middle_of_a_stream() -> None:
    limiter = limiter_of(Policy("hint", "1 concurrent", match="/**"))
    endless, has_begun = asyncio.Event(), asyncio.Event()

    async def pieces() -> Any:
        yield b"data: 1\n\n"
        has_begun.set()
        await endless.wait()

    async def view(request: Request) -> Response:
        return StreamingResponse(pieces())

    async def receive() -> Message:
        await has_begun.wait()
        return {"type": "http.disconnect"}

    app = RateLimitMiddleware(Starlette(routes=[Route("/", view)]), limiter=limiter)
    sent = await call(app, scope_of("/", method="GET"), receive)
    assert [message.get("body") for message in sent] == [None, b"data: 1\n\n"]
    assert await held(limiter) == 0


async def test_a_websocket_holds_its_slot_until_it_is_closed() -> None:
    limiter = limiter_of(Policy("hint", "1 concurrent", match="/**"))
    seen: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "hello"})
        seen.append(await held(limiter))
        seen.append((await call(guarded, scope_of(kind="websocket")))[0]["code"])
        await send({"type": "websocket.close", "code": 1000})

    guarded = RateLimitMiddleware(app, limiter=limiter)
    await call(guarded, scope_of(kind="websocket"))
    assert seen == [1, 1008]
    assert await held(limiter) == 0


async def test_a_later_refusal_gives_it_back() -> None:
    limiter = limiter_of(EXPORT, Policy("all", "1/day", match="/**"))
    app = RateLimitMiddleware(hello, limiter=limiter)
    assert [(await call(app, scope_of()))[0]["status"] for _ in range(2)] == [200, 429]
    assert await held(limiter) == 0
    assert (await limiter.peek(USER, "hint")).quotas[1].used == 1


async def test_what_does_not_count_goes_back_and_the_slot_with_it() -> None:
    limiter = limiter_of(Policy("hint", "1 concurrent; 2/day", match="/**", count="success"))
    app = RateLimitMiddleware(hello, limiter=limiter)
    for _ in range(3):
        start, _ = await call(app, scope_of(headers=[(b"x-status", b"500")]))
        assert start["status"] == 500
    assert headers_of(start)["ratelimit"] == '"hint-concurrent";r=0', "the slot is this request's own"
    assert (await limiter.peek(USER, "hint")).quotas[1].used == 0
    assert await held(limiter) == 0


async def test_a_view_that_asks_for_one() -> None:
    limiter = limiter_of(Policy("hint", "1 concurrent"))
    seen: list[int] = []

    async def view(request: Request) -> Response:
        await limited("hint")(request)
        seen.append(await held(limiter))
        return JSONResponse({})

    app = RateLimitMiddleware(Starlette(routes=[Route("/", view)]), limiter=limiter)
    async with client_of(app) as client:
        assert [(await client.get("/")).status_code for _ in range(2)] == [200, 200]
    assert seen == [1, 1]
    assert await held(limiter) == 0


@pytest.mark.parametrize(
    ("policy", "quotas"), [("1 concurrent", None), ("5/day", "1 concurrent"), ("5/day", lambda request: "1 concurrent")]
)
async def test_without_the_middleware_nobody_would_give_it_back(policy: str, quotas: Any) -> None:
    limiter = limiter_of(Policy("hint", policy))
    with pytest.raises(RateLimitError, match="takes RateLimitMiddleware"):
        await limited("hint", limiter=limiter, quotas=quotas)(Request(scope_of()))
    assert await held(limiter) == 0


async def test_with_others_it_is_not_decided() -> None:
    for alone in (EXPORT, TOKENS):
        with pytest.raises(ConfigError, match="slots and reservations are decided alone"):
            limiter_of(alone, Policy("all", "1/day", match="/**", together="hint"))


@pytest.mark.parametrize("policy", [HINT, Policy("hint", "5/day", match="/**", lease=5)], ids=["plain", "leased"])
async def test_slots_of_a_users_own(policy: Policy) -> None:
    store = MemoryStore()
    directory = Directory(store.directory)
    await directory.put_user(User(USER, quotas={"hint": "1 concurrent"}))
    limiter = Limiter(store, [policy], clock=FakeClock(), directory=directory)
    app = Slow()
    guarded = RateLimitMiddleware(app, limiter=limiter)
    first = asyncio.create_task(call(guarded, scope_of()))
    await app.started.acquire()
    assert (await call(guarded, scope_of()))[0]["status"] == 429
    app.go_on.set()
    await first
    assert await held(limiter) == 0


async def test_a_gateway_that_asks_never_says_when_a_request_has_ended() -> None:
    """A slot comes back by itself then, and what is reserved is spent."""
    clock = FakeClock()
    limiter = limiter_of(Policy("hint", "1 concurrent; 9/day", match="/**"), clock=clock)
    async with client_of(Authz(limiter=limiter)) as client:
        assert [(await client.post("/v1/authz/hints")).status_code for _ in range(2)] == [200, 429]
        clock.advance(11)
        await limiter._holds.renew_due()
        assert (await client.post("/v1/authz/hints")).status_code == 429
        clock.advance(27)
        assert (await client.post("/v1/authz/hints")).status_code == 200
    limiter = limiter_of(TOKENS)
    async with client_of(Authz(limiter=limiter)) as client:
        assert (await client.post("/v1/authz/hints")).status_code == 200
    assert (await limiter.peek(USER, "hint")).used == 100
    assert await held(limiter, "r") == 0


async def test_the_api_says_that_a_check_has_no_end() -> None:
    store = MemoryStore()
    limiter = limiter_of(EXPORT, store=store)
    async with client_of(Api(limiter, store)) as client:
        answer = await client.post("/v1/check", json={"user": "alice", "action": "hint"})
        assert answer.status_code in (400, 422)
        assert "a request through the middleware or the sidecar" in answer.json()["detail"]
        assert (await client.post("/v1/peek", json={"user": "alice", "action": "hint"})).json()["remaining"] == 2


async def test_what_nobody_can_give_back_any_more_is_not_renewed() -> None:
    clock = FakeClock()
    limiter = limiter_of(Policy("hint", "1 concurrent"), clock=clock)
    await limiter.slot(USER, "hint").take()
    clock.advance(11)
    await limiter._holds.renew_due()
    clock.advance(27)
    assert await limiter.slot(USER, "hint").take()


# Reservations.


async def metered(scope: Scope, receive: Receive, send: Send) -> None:
    """Uses what `x-used` says, and knows so when its answer is nearly complete."""
    used = int(dict(scope["headers"]).get(b"x-used", b"100"))
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
    scope["ratelimit"].settle("hint", used)
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize("used", [0, 30, 100])
async def test_what_a_stream_has_really_used(used: int) -> None:
    store = CountingStore()
    limiter = limiter_of(TOKENS, store=store)
    usage = UsageLog(store.memory, clock=limiter.clock)
    app = RateLimitMiddleware(metered, limiter=limiter, usage=usage)
    async with usage:
        await call(app, scope_of(headers=[(b"x-used", b"%d" % used)]))
        assert store.calls["apply"] == 2, "one write to take it, one to settle"
        await usage.flush()
    assert (await limiter.peek(USER, "hint")).used == used
    assert await held(limiter, "r") == 0
    (event,) = store.events
    assert event.cost == used


async def test_without_a_word_all_of_it_is_used_and_an_error_of_the_app_says_so_too() -> None:
    limiter = limiter_of(TOKENS)
    await call(RateLimitMiddleware(hello, limiter=limiter), scope_of())
    assert (await limiter.peek(USER, "hint")).used == 100
    assert await held(limiter, "r") == 0


async def test_settlements_of_requests_that_cannot_be() -> None:
    limiter = limiter_of(TOKENS)
    said: list[type[Exception]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for action, used in (("hint", 101), ("other", 1), ("hint", 5), ("hint", 5)):
            try:
                scope["ratelimit"].settle(action, used)
            except RateLimitError as error:
                said.append(type(error))
        await hello(scope, receive, send)

    await call(RateLimitMiddleware(app, limiter=limiter), scope_of())
    assert said == [InvalidCost, NotHeld, NotHeld]
    assert (await limiter.peek(USER, "hint")).used == 5


async def test_what_does_not_count_is_settled_at_nothing() -> None:
    store = CountingStore()
    limiter = limiter_of(Policy("hint", "1000/day", match="/**", cost=100, reserve=True, count="success"), store=store)
    start, _ = await call(RateLimitMiddleware(hello, limiter=limiter), scope_of(headers=[(b"x-status", b"500")]))
    assert headers_of(start)["ratelimit"] == '"hint";r=1000;t=43200'
    assert store.calls["apply"] == 2
    assert (await limiter.peek(USER, "hint")).used == 0
    assert await held(limiter, "r") == 0


@pytest.mark.parametrize("is_late", [False, True])
async def test_an_answer_that_does_not_count_counts_for_more_than_what_the_app_has_settled(
    is_late: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where all of it has gone back meanwhile."""
    clock, store = FakeClock(), CountingStore()
    policy = Policy("hint", "1000/day", match="/**", cost=100, reserve=True, count="success")
    limiter, other = (limiter_of(policy, store=store, clock=clock) for _ in range(2))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["ratelimit"].settle("hint", 30)
        if is_late:
            clock.advance(60)
            async with other.reserve(USER, "hint", 1) as reservation:
                await other.drain()
                reservation.settle(0)
        await hello(scope, receive, send)

    start, _ = await call(RateLimitMiddleware(app, limiter=limiter), scope_of(headers=[(b"x-status", b"500")]))
    assert headers_of(start)["ratelimit"].startswith('"hint";r=1000')
    assert (await limiter.peek(USER, "hint")).used == 0
    assert await held(limiter, "r") == 0
    assert not caplog.records


async def test_what_has_gone_back_already_is_charged_where_it_was_used() -> None:
    clock, store = FakeClock(), MemoryStore()
    limiter = limiter_of(TOKENS, store=store, clock=clock)
    other = limiter_of(TOKENS, store=store, clock=clock)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        clock.advance(3600)
        await other.reserve(USER, "hint", 1).take()
        await other.drain()
        scope["ratelimit"].settle("hint", 70)
        await hello(scope, receive, send)

    await call(RateLimitMiddleware(app, limiter=limiter), scope_of())
    assert (await limiter.peek(USER, "hint")).used == 71


async def test_what_a_view_has_reserved_by_quotas_of_its_own_is_charged_to_those() -> None:
    clock, store = FakeClock(), MemoryStore()
    policy = Policy("hint", "1000/day", cost=100, reserve=True)
    limiter, other = (limiter_of(policy, store=store, clock=clock) for _ in range(2))
    ask = limited("hint", quotas="500/hour", key="acme")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await ask(Request(scope))
        clock.advance(60)
        await other.reserve("acme", "hint", 1, quotas="500/hour").take()
        await other.drain()
        scope["ratelimit"].settle("hint", 70)
        await hello(scope, receive, send)

    await call(RateLimitMiddleware(app, limiter=limiter), scope_of(query_string=b""))
    assert (await limiter.peek("acme", "hint", quotas="500/hour")).used == 71


async def _nothing() -> Message:
    raise AssertionError
