"""A limiter on a real connection to a server that misbehaves: always a decision, in bounded time, no exception."""

from __future__ import annotations

import asyncio

import pytest

from ratelimit.clock import SystemClock
from ratelimit.dynamodb import DynamoDBStore
from ratelimit.limiter import Limiter
from ratelimit.policy import OnUnavailable, Policy
from ratelimit.testing import FakeClock
from tests.faults import Behaviour, FaultServer, garbage, half, hang_up, internal_error, slow, throttled

pytestmark = pytest.mark.heavy

ANSWERS: list[OnUnavailable] = ["allow", "deny", "local"]
BAD_DAYS = [
    pytest.param(slow(30), 1.0, id="30 s an answer"),
    pytest.param(internal_error(), 30.0, id="500"),
    pytest.param(throttled(), 30.0, id="throttled"),
    pytest.param(garbage(), 30.0, id="garbage"),
    pytest.param(half(), 30.0, id="half an answer"),
    pytest.param(hang_up(), 30.0, id="hang up"),
]


def on(
    server: FaultServer, on_unavailable: OnUnavailable, clock: FakeClock, deadline: float = 30
) -> tuple[Limiter, DynamoDBStore]:
    store = DynamoDBStore(table="limits", region="eu-west-1", endpoint=server.endpoint)
    policy = Policy("hint", "2/day", on_unavailable=on_unavailable)
    return Limiter(store, [policy], clock=clock, deadline=deadline, denial_cache=0), store


def expected(on_unavailable: OnUnavailable, checks: int) -> list[bool]:
    if on_unavailable == "local":
        return [number < 2 for number in range(checks)]
    return [on_unavailable == "allow"] * checks


@pytest.mark.parametrize("on_unavailable", ANSWERS)
@pytest.mark.parametrize(("bad_day", "deadline"), BAD_DAYS)
async def test_a_bad_day_is_a_decision(bad_day: Behaviour, deadline: float, on_unavailable: OnUnavailable) -> None:
    clock = FakeClock()
    async with FaultServer() as server:
        limiter, _ = on(server, on_unavailable, clock, deadline)
        async with limiter, asyncio.timeout(60):
            server.always(bad_day)
            decisions = [await limiter.check("alice", "hint") for _ in range(4)]
            assert [decision.allowed for decision in decisions] == expected(on_unavailable, 4)
            assert all(decision.reason == "unavailable" for decision in decisions if decision.allowed)
            server.recover()
            clock.advance(60)
            back = await limiter.check("bob", "hint")
            assert (back.allowed, back.reason, limiter.breaker.state) == (True, None, "closed")


@pytest.mark.parametrize("on_unavailable", ANSWERS)
async def test_a_dead_server_is_a_decision_and_soon_no_call_at_all(on_unavailable: OnUnavailable) -> None:
    clock = FakeClock()
    async with FaultServer() as server:
        limiter, store = on(server, on_unavailable, clock)
        async with limiter, asyncio.timeout(60):
            await limiter.check("warm", "hint")
            await server.refuse()
            decisions = [await limiter.check("alice", "hint") for _ in range(30)]
            assert [decision.allowed for decision in decisions] == expected(on_unavailable, 30)
            assert limiter.breaker.state == "open"
            calls = store.stats.calls.copy()
            await asyncio.gather(*(limiter.check("alice", "hint") for _ in range(200)))
            assert store.stats.calls == calls

            await server.listen()
            clock.advance(60)
            assert (await limiter.check("bob", "hint")).reason is None
            assert limiter.breaker.state == "closed"


async def test_a_server_that_was_never_there_is_a_decision_too() -> None:
    async with FaultServer() as server:
        await server.refuse()
        limiter, _ = on(server, "allow", FakeClock())
        async with asyncio.timeout(60):
            assert (await limiter.check("alice", "hint")).reason == "unavailable"
        await limiter.close()


async def test_a_write_whose_answer_was_lost_is_not_sent_again() -> None:
    """Usage may read one too high after it; sent twice it would read too high by a whole request."""
    async with FaultServer() as server:
        limiter, _ = on(server, "allow", FakeClock())
        async with limiter:
            await limiter.check("alice", "hint")
            server.received.clear()
            for behaviour in (internal_error(), half(), hang_up()):
                server.then(behaviour)
                await limiter.check("alice", "hint")
            assert server.received["UpdateItem"] == 3


async def test_a_throttled_write_is_sent_again() -> None:
    async with FaultServer() as server:
        store = DynamoDBStore(table="limits", region="eu-west-1", endpoint=server.endpoint)
        async with Limiter(store, [Policy("hint", "5/day")], clock=SystemClock(), deadline=5) as limiter:
            server.then(throttled(), throttled())
            assert (await limiter.check("alice", "hint")).reason is None
            assert store.stats.retries == 2
