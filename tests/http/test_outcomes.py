"""`count = "success" | "failure"`: what does not count in the end is given back, behind the response."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from ratelimit.errors import StoreUnavailable
from ratelimit.http import RateLimitMiddleware
from ratelimit.http.refunds import Refunds
from ratelimit.policy import Count, Policy
from ratelimit.testing import FakeClock
from tests.http.apps import call, client_of, hello, limiter_of, scope_of, settled, used
from tests.limiter.stores import FailingStore


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
    assert answer.headers["ratelimit"] == '"hint";r=4;t=43200'
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


async def test_a_client_that_goes_away_before_the_answer_is_a_failure() -> None:
    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    limiter = limiter_of(Policy("hint", "5/day", match="/**", count="success"))
    task = asyncio.create_task(call(RateLimitMiddleware(slow, limiter=limiter), scope_of()))
    await settled()
    assert await used(limiter) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await used(limiter) == 0


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


async def test_a_refund_that_fails_is_logged_and_never_in_the_way(caplog: pytest.LogCaptureFixture) -> None:
    store = FailingStore()
    limiter = limiter_of(Policy("hint", "5/day", match="/**", count="success"), store=store)

    async def dead() -> None:
        raise StoreUnavailable("nobody is there")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        store.fault = dead
        await hello(scope, receive, send)

    middleware = RateLimitMiddleware(app, limiter=limiter)
    (start, _) = await call(middleware, scope_of(headers=[(b"x-status", b"500")]))
    assert start["status"] == 500
    await settled()
    assert "1 units of 'hint' were not given back: nobody is there" in caplog.text
    assert (middleware.refunds.lost, len(middleware.refunds)) == (1, 0)


async def test_a_response_does_not_wait_for_its_refund() -> None:
    store = FailingStore()
    limiter = limiter_of(Policy("hint", "5/day", match="/**", count="success"), store=store)
    answer_it = asyncio.Event()

    async def waiting() -> None:
        await answer_it.wait()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        store.fault = waiting
        await hello(scope, receive, send)

    middleware = RateLimitMiddleware(app, limiter=limiter)
    await call(middleware, scope_of(headers=[(b"x-status", b"500")]))
    assert len(middleware.refunds) == 1
    answer_it.set()
    await middleware.refunds.drain()
    assert await used(limiter) == 0


async def test_refunds_under_way_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    class Stuck:
        policy = Policy("hint", "5/day")

        class decision:  # noqa: N801
            cost = 1

        def __init__(self) -> None:
            self.go = asyncio.Event()

        async def give_back(self) -> None:
            await self.go.wait()

    refunds, receipts = Refunds(most=2), [Stuck() for _ in range(3)]
    for receipt in receipts:
        refunds.start([receipt])  # type: ignore[list-item]
    assert (len(refunds), refunds.lost) == (2, 1)
    assert "2 refunds are under way already" in caplog.text
    for receipt in receipts:
        receipt.go.set()
    await refunds.drain()
    assert len(refunds) == 0


async def test_a_bug_in_a_refund_is_logged_as_one(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        async def give_back(self) -> None:
            raise ZeroDivisionError

    refunds = Refunds()
    refunds.start([Broken()])  # type: ignore[list-item]
    await settled()
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "ZeroDivisionError" in caplog.text


async def test_the_same_message_may_be_sent_for_every_request() -> None:
    start: Message = {"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start)

    middleware: Any = RateLimitMiddleware(app, limiter=limiter_of())
    for _ in range(3):
        (sent,) = await call(middleware, scope_of())
        assert len(sent["headers"]) == 3
    assert start["headers"] == [(b"a", b"b")]
