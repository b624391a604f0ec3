"""A clock that is off: whatever is signed is signed by the server's time, from the first refusal on."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from ratelimit import AccessDenied, Limiter, Policy, UsageEvent
from ratelimit.clock import SECOND, SystemClock
from ratelimit.dynamodb import DynamoDBStore, create_table, parse_url
from ratelimit.names import Key
from ratelimit.store import Add, Write
from tests.engines import Engine
from tests.faults import FaultServer, error
from tests.faults.oddities import of_engine, punctual

ADD = Write((Add("d1", 1),), 1_999_999_999)
OFF = [-600, 600, 7 * 86_400]

fast_or_slow = pytest.mark.parametrize("fast", [True, False], ids=["fast", "slow"])


def punctual_server(server: FaultServer, off: int, **options: Any) -> None:
    """Every request is refused that was not signed by a clock that is so many seconds ahead of ours."""
    server.everything(punctual(lambda: SystemClock().now() / SECOND + off, **options))


@fast_or_slow
@pytest.mark.parametrize("off", OFF)
async def test_every_operation_is_signed_by_the_servers_time(
    engine: Engine, server: FaultServer, fast: bool, off: int
) -> None:
    """One refusal in all, whoever has it: the others know."""
    url = engine.store_url(f"clock-{uuid4().hex[:8]}")
    settings = parse_url(url)
    await create_table(settings)
    punctual_server(server, off, then=of_engine(engine.endpoint))
    async with DynamoDBStore(settings, endpoint=server.endpoint, fast=fast, attempts=1, read_timeout=60) as store:
        key, at = Key.of("alice", "hint"), SystemClock().now()
        asked = server.received.total()
        assert asked == 2  # DescribeTable, twice
        assert (await store.apply(key, ADD, now=0)).applied
        assert await store.read(key) == {"d1": 1}
        await store.delete(key)
        event = UsageEvent.of("alice", "hint", now=at)
        assert not await store.events.put([event])
        assert await store.events.page("alice", event.at.date(), since=event.at_ms, until=event.at_ms + 1, limit=5)
        assert (await store.scans.events(since=event.at_ms, until=event.at_ms + 1)).entries
        assert server.received.total() == asked + 6
        assert store.stats.fallbacks == {}


@fast_or_slow
async def test_the_quota_holds(engine: Engine, server: FaultServer, fast: bool) -> None:
    """Checks, refusals, peeks, totals and a reset, of which each is another operation."""
    url = engine.store_url(f"clock-{uuid4().hex[:8]}", create="true")
    async with DynamoDBStore(parse_url(url)):
        pass
    punctual_server(server, 600, then=of_engine(engine.endpoint))
    store = DynamoDBStore(parse_url(url), endpoint=server.endpoint, fast=fast, read_timeout=30)
    async with Limiter(store, [Policy("hint", "3/day")], denial_cache=0) as limiter:
        checks = [await limiter.check("alice", "hint") for _ in range(6)]
        assert [check.allowed for check in checks] == [True] * 3 + [False] * 3
        assert {check.reason for check in checks[3:]} == {"quota"}
        assert not (await limiter.peek("alice", "hint")).allowed
        assert sum((await limiter.totals("alice"))["hint"].values()) == 3
        await limiter.reset("alice", "hint")
        assert (await limiter.check("alice", "hint")).allowed


@fast_or_slow
async def test_a_clock_that_is_set_meanwhile(server: FaultServer, fast: bool) -> None:
    """Ours or theirs: what was learned is learned anew."""
    async with DynamoDBStore(table="limits", endpoint=server.endpoint, fast=fast, attempts=1) as store:
        for number, off in enumerate((600, -600, 0, 86_400), start=1):
            punctual_server(server, off)
            assert (await store.apply(Key.of("alice", "hint"), ADD, now=0)).record == {"d1": number}
            assert await store.read(Key.of("alice", "hint")) == {"d1": number}


async def test_those_under_way_at_that_moment_learn_it_too(server: FaultServer) -> None:
    async with DynamoDBStore(table="limits", endpoint=server.endpoint, fast=False, attempts=1) as store:
        punctual_server(server, -600)
        key = Key.of("alice", "hint")
        assert all(
            outcome.applied for outcome in await asyncio.gather(*(store.apply(key, ADD, now=0) for _ in range(9)))
        )


@fast_or_slow
async def test_a_refusal_that_is_not_the_clocks_fault_is_not_repeated(server: FaultServer, fast: bool) -> None:
    async with DynamoDBStore(table="limits", endpoint=server.endpoint, fast=fast, attempts=1) as store:
        server.always(error("InvalidSignatureException"))
        with pytest.raises(AccessDenied):
            await store.read(Key.of("alice", "hint"))
        assert server.received["GetItem"] == (2 if fast else 1), "aiobotocore is asked as well"
