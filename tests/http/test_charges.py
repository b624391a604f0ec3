"""What counts by how it was answered: what does not is given back, before the client has the answer."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from ratelimit import open_store
from ratelimit.errors import ConfigError, StoreUnavailable
from ratelimit.http import RateLimitMiddleware, limited
from ratelimit.limiter import Limiter
from ratelimit.names import Key
from ratelimit.policy import Count, Policy
from ratelimit.store import MemoryStore, Outcome, Record, Write
from ratelimit.testing import FakeClock
from tests.engines import Engine
from tests.http.apps import call, client_of, headers_of, hello, limiter_of, scope_of, unread, used
from tests.limiter.stores import CountingStore, FailingStore, failing, hang
from tests.turns import settled


class NetworkStore(CountingStore):
    """Its answers take a few turns of the loop, as over a network."""

    async def apply(self, key: Key, write: Write, *, now: int) -> Outcome:
        for _ in range(5):
            await asyncio.sleep(0)
        outcome = await super().apply(key, write, now=now)
        for _ in range(5):
            await asyncio.sleep(0)
        return outcome

    async def read(self, key: Key) -> Record:
        record = await super().read(key)
        for _ in range(5):
            await asyncio.sleep(0)
        return record


class Held:
    """Answers as `hello` does: who says `X-Slow`, when it is told to go on."""

    def __init__(self) -> None:
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (b"x-slow", b"1") in scope["headers"]:
            self.reached.set()
            await self.go_on.wait()
        await hello(scope, receive, send)


@pytest.mark.parametrize(
    ("count", "status", "spent"),
    [
        ("all", 200, 1),
        ("all", 500, 1),
        ("success", 200, 1),
        ("success", 302, 1),
        ("success", 400, 0),
        ("success", 503, 0),
        ("failure", 200, 0),
        ("failure", 399, 0),
        ("failure", 401, 1),
        ("failure", 500, 1),
    ],
)
async def test_what_counts(count: Count, status: int, spent: int) -> None:
    limiter = limiter_of(Policy("hint", "5/day", match="/**", count=count))
    client = client_of(RateLimitMiddleware(hello, limiter=limiter))
    answer = await client.get("/", headers={"x-status": str(status)})
    assert answer.headers["ratelimit"] == f'"hint";r={5 - spent};t=43200'
    assert await used(limiter) == spent


@pytest.mark.parametrize(("count", "spent"), [("success", 0), ("failure", 1)])
async def test_an_exception_and_no_answer_are_failures(count: Count, spent: int) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError

    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        return

    limiter = limiter_of(Policy("hint", "5/day", match="/**", count=count))
    with pytest.raises(ZeroDivisionError):
        await call(RateLimitMiddleware(broken, limiter=limiter), scope_of())
    assert await used(limiter) == spent
    assert await call(RateLimitMiddleware(silent, limiter=limiter), scope_of()) == []
    assert await used(limiter) == 2 * spent


async def test_given_back_as_soon_as_the_status_is_known_and_once() -> None:
    limiter = limiter_of(Policy("hint", "5/day", match="/**", count="success"))
    seen: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(await used(limiter))
        await send({"type": "http.response.start", "status": 404, "headers": []})
        seen.append(await used(limiter))
        await send({"type": "http.response.body", "body": b""})
        await limiter.check("ip:203.0.113.7", "hint")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await call(RateLimitMiddleware(app, limiter=limiter), scope_of())
    assert seen == [1, 0]
    assert await used(limiter) == 1


async def test_an_answer_that_breaks_off_after_a_good_start_was_a_success() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ZeroDivisionError

    limiter = limiter_of(Policy("hint", "5/day", match="/**", count="success"))
    with pytest.raises(ZeroDivisionError):
        await call(RateLimitMiddleware(app, limiter=limiter), scope_of())
    assert await used(limiter) == 1


async def test_given_back_to_the_window_it_was_taken_from() -> None:
    clock = FakeClock(datetime(2026, 11, 21, 23, 59, 59, tzinfo=UTC))
    limiter = limiter_of(Policy("hint", "5/day", match="/**", count="success"), clock=clock)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        clock.advance(2)
        await limiter.check("ip:203.0.113.7", "hint")
        await send({"type": "http.response.start", "status": 500, "headers": []})

    await call(RateLimitMiddleware(app, limiter=limiter), scope_of())
    assert await used(limiter) == 1


async def test_a_refund_that_fails_is_counted_and_never_in_the_way(caplog: pytest.LogCaptureFixture) -> None:
    store = FailingStore()
    limiter = limiter_of(Policy("hint", "5/day", match="/**", count="success", cost=2), store=store)

    async def dead() -> None:
        raise StoreUnavailable("nobody is there")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        store.fault = dead
        await hello(scope, receive, send)

    start, body = await call(RateLimitMiddleware(app, limiter=limiter), scope_of(headers=[(b"x-status", b"500")]))
    assert (start["status"], body["body"]) == (500, b"hello")
    assert headers_of(start)["ratelimit"] == '"hint";r=3;t=43200'
    assert "2 units of 'hint' were not given back: nobody is there" in caplog.text
    assert limiter.stats.lost["unreturned"] == 2


async def test_an_answer_waits_for_its_refund_no_longer_than_for_the_store() -> None:
    store = FailingStore()
    limiter = limiter_of(Policy("hint", "5/day", match="/**", count="success"), store=store, deadline=0.05)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        store.fault = hang
        await hello(scope, receive, send)

    async with asyncio.timeout(30):
        start, _ = await call(RateLimitMiddleware(app, limiter=limiter), scope_of(headers=[(b"x-status", b"500")]))
    assert start["status"] == 500


class HeldRefund:
    """A middleware whose app fails, so that a unit is given back; the store takes it when `release` is called."""

    def __init__(self) -> None:
        self.store = FailingStore()
        self.limiter = limiter_of(Policy("hint", "5/day", match="/**", count="success"), store=self.store)
        self.middleware = RateLimitMiddleware(self._app, limiter=self.limiter)
        self.asked, self._go = asyncio.Event(), asyncio.Event()

    def release(self) -> None:
        self.store.fault = None
        self._go.set()

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.store.fault = self._held
        await hello(scope, receive, send)

    async def _held(self) -> None:
        self.asked.set()
        await self._go.wait()


async def test_nothing_of_an_answer_goes_out_before_the_refund_has_arrived() -> None:
    held = HeldRefund()
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    request = asyncio.create_task(held.middleware(scope_of(headers=[(b"x-status", b"500")]), unread, send))
    await held.asked.wait()
    await settled()
    assert sent == []
    held.release()
    await request
    assert len(sent) == 2
    assert await used(held.limiter) == 0


async def test_a_client_that_goes_away_meanwhile_leaves_the_refund_on_its_way() -> None:
    held = HeldRefund()
    request = asyncio.create_task(call(held.middleware, scope_of(headers=[(b"x-status", b"500")])))
    await held.asked.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert len(held.middleware.refunds) == 1
    held.release()
    await held.middleware.refunds.drain()
    assert await used(held.limiter) == 0


@pytest.mark.parametrize("count", ["all", "success", "failure"])
async def test_who_leaves_before_the_answer_gets_nothing_back(count: Any) -> None:
    """As servers tell an app that cancel it then: daphne, and Django's own handler."""
    asked = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked.set()
        await asyncio.Event().wait()

    limiter = limiter_of(Policy("hint", "5/day", match="/**", count=count))
    request = asyncio.create_task(call(RateLimitMiddleware(app, limiter=limiter), scope_of()))
    await asked.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    await settled()
    assert await used(limiter) == 1


async def test_a_bug_in_a_refund_is_logged_as_one(caplog: pytest.LogCaptureFixture) -> None:
    class BrokenRefunds(Limiter):
        async def refund(self, *args: Any, **options: Any) -> None:
            raise ZeroDivisionError

    limiter = BrokenRefunds(MemoryStore(), [Policy("hint", "5/day", match="/**", count="failure")], clock=FakeClock())
    start, _ = await call(RateLimitMiddleware(hello, limiter=limiter), scope_of())
    await settled()
    assert start["status"] == 200
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "ZeroDivisionError" in caplog.text


def counting_failures(limiter: Limiter) -> httpx.AsyncClient:
    return client_of(RateLimitMiddleware(hello, limiter=limiter))


@pytest.mark.parametrize("algorithm", ["fixed_window", "sliding_window", "gcra"])
async def test_an_honest_client_in_sequence_is_never_refused(algorithm: Any) -> None:
    """On a store that is asked over a network, by two processes in turn."""
    store = NetworkStore()
    policy = Policy("hint", "1/day", match="/**", count="failure", algorithm=algorithm)
    one, other = [counting_failures(limiter_of(policy, store=store)) for _ in range(2)]
    for _ in range(100):
        assert (await one.get("/")).status_code == 200
        assert (await other.get("/")).status_code == 200
    assert (await one.get("/", headers={"x-status": "401"})).status_code == 401
    assert (await other.get("/")).status_code == 429


async def test_so_it_is_on_a_table(engine: Engine) -> None:
    policy = Policy("login", "1/day", match="/**", count="failure", on_unavailable="deny")
    url = engine.store_url(f"outcomes-{uuid4().hex[:8]}", create="true")
    async with open_store(url) as store, open_store(url) as same:
        one, other = [counting_failures(Limiter(each, [policy])) for each in (store, same)]
        answers = [await client.get("/") for _ in range(75) for client in (one, one, other, other)]
        assert [answer.status_code for answer in answers] == [200] * 300
        assert {answer.headers["ratelimit"].partition(";t=")[0] for answer in answers} == {'"login";r=1'}


async def test_nor_while_the_store_is_away_and_this_process_counts_by_itself() -> None:
    store = FailingStore()
    store.fault = failing(StoreUnavailable("nobody is there"))
    client = counting_failures(limiter_of(Policy("hint", "1/day", match="/**", count="failure"), store=store))
    assert [(await client.get("/")).status_code for _ in range(20)] == [200] * 20
    assert (await client.get("/", headers={"x-status": "401"})).status_code == 401
    assert (await client.get("/")).status_code == 429


async def test_another_process_does_not_remember_a_unit_that_was_given_back() -> None:
    """What it saw while a request was on its way: the client then comes to it with the next one."""
    store, clock = NetworkStore(), FakeClock()
    policy = Policy("hint", "1/day", match="/**", count="failure")
    app = Held()
    one = client_of(RateLimitMiddleware(app, limiter=limiter_of(policy, store=store, clock=clock)))
    other = counting_failures(limiter_of(policy, store=store, clock=clock))
    first = asyncio.create_task(one.get("/", headers={"x-slow": "1"}))
    await app.reached.wait()
    assert [(await other.get("/")).status_code for _ in range(3)] == [429] * 3
    app.go_on.set()
    assert (await first).status_code == 200
    assert (await other.get("/")).status_code == 200


async def test_while_units_may_still_come_back_a_refusal_says_to_come_back_soon() -> None:
    policy = Policy("hint", "2/day", match="/**", count="failure")
    limiter = limiter_of(policy)
    app = Held()
    client = client_of(RateLimitMiddleware(app, limiter=limiter))
    assert (await client.get("/", headers={"x-status": "401"})).status_code == 401
    slow = asyncio.create_task(client.get("/", headers={"x-slow": "1", "x-status": "401"}))
    await app.reached.wait()
    refused = await client.get("/")
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert refused.headers["ratelimit"] == '"hint";r=0;t=1'
    assert "Try again in 1 second." in refused.json()["detail"]
    app.go_on.set()
    assert (await slow).status_code == 401
    final = await client.get("/")
    assert (final.status_code, final.headers["retry-after"]) == (429, "43200")


async def test_nobody_else_s_requests_shorten_a_refusal() -> None:
    limiter = limiter_of(Policy("hint", "1/day", match="/**", count="failure"))
    app = Held()
    middleware = RateLimitMiddleware(app, limiter=limiter)
    mallory, alice = client_of(middleware), client_of(middleware, address="203.0.113.8")
    assert (await mallory.get("/", headers={"x-status": "401"})).status_code == 401
    slow = asyncio.create_task(alice.get("/", headers={"x-slow": "1"}))
    await app.reached.wait()
    assert (await mallory.get("/")).headers["retry-after"] == "43200"
    app.go_on.set()
    await slow


def only_redirects_are_free(response: Response) -> bool:
    return response.status_code != 302 or response.headers["location"].startswith("/login")


@pytest.mark.parametrize(
    ("status", "location", "spent"), [(200, "", 1), (302, "/home", 0), (302, "/login?next=/", 1), (500, "", 1)]
)
async def test_a_function_of_the_response_says_what_counts(status: int, location: str, spent: int) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": [(b"Location", location.encode())]})

    limiter = limiter_of(Policy("hint", "5/day", match="/**", count=only_redirects_are_free))
    await call(RateLimitMiddleware(app, limiter=limiter), scope_of())
    assert await used(limiter) == spent


async def test_such_a_function_is_told_of_a_failure_where_there_was_no_answer() -> None:
    seen: list[int] = []

    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError

    def note(response: Response) -> bool:
        seen.append(response.status_code)
        return False

    limiter = limiter_of(Policy("hint", "5/day", match="/**", count=note))
    with pytest.raises(ZeroDivisionError):
        await call(RateLimitMiddleware(broken, limiter=limiter), scope_of())
    assert (seen, await used(limiter)) == ([500], 0)


def test_what_counts_is_known_at_once_or_refused_at_the_start() -> None:
    async def later(response: Response) -> bool:
        return True

    with pytest.raises(ConfigError, match="count: must be a plain function"):
        Policy("hint", "5/day", count=later)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="did you mean 'success'"):
        Policy("hint", "5/day", count="sucess")  # type: ignore[arg-type]


@pytest.mark.parametrize("count", ["all", "success"])
@pytest.mark.parametrize(("asked", "redirects"), [("/hints/", True), ("/hints", False)])
async def test_a_slash_too_many_costs_nothing_more(count: Any, asked: str, redirects: bool) -> None:
    limiter = limiter_of(Policy("hint", "5/day", match="/hints", count=count))
    app = Starlette(routes=[Route("/hints", lambda _: PlainTextResponse("ok"))])
    client = client_of(RateLimitMiddleware(app, limiter=limiter))
    answer = await client.get(f"{asked}?a=1", follow_redirects=True)
    assert (answer.text, bool(answer.history), answer.headers["ratelimit"]) == (
        "ok", redirects, '"hint";r=4;t=43200',
    )  # fmt: skip
    assert await used(limiter) == 1


@pytest.mark.parametrize(
    ("status", "location", "spent"),
    [
        (307, "/hints/", 0),
        (308, "http://127.0.0.1/hints/", 0),
        (301, "/hints/", 0),
        # A client sends something else then, and what it sent before may well have been done.
        (302, "/hints/", 1),
        (303, "/hints/", 1),
        (307, "/hints", 1),
        (307, "/hints//", 1),
        (307, "/hints/?done=1", 1),
        (307, "/other/", 1),
        (307, "http://elsewhere.test/hints/", 1),
        (307, "", 1),
        (307, "//[", 1),
        (200, "/hints/", 1),
    ],
)
async def test_only_such_a_redirect_is_free(status: int, location: str, spent: int) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": [(b"Location", location.encode())]})

    limiter = limiter_of()
    await call(RateLimitMiddleware(app, limiter=limiter), scope_of(headers=[(b"host", b"127.0.0.1")]))
    assert await used(limiter) == spent


async def test_a_view_that_has_asked_and_then_redirects_has_done_its_work() -> None:
    ask = limited("hint")

    async def view(request: Request) -> RedirectResponse:
        await ask(request)
        return RedirectResponse("/hints/")

    limiter = limiter_of(Policy("hint", "5/day"))
    await client_of(RateLimitMiddleware(Starlette(routes=[Route("/hints", view)]), limiter=limiter)).get("/hints")
    assert await used(limiter) == 1


async def test_the_same_message_may_be_sent_for_every_request() -> None:
    start: Message = {"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start)

    middleware: Any = RateLimitMiddleware(app, limiter=limiter_of())
    for _ in range(3):
        (sent,) = await call(middleware, scope_of())
        assert len(sent["headers"]) == 3
    assert start["headers"] == [(b"a", b"b")]
