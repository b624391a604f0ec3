"""An engine that does not say why it refuses a write: the quota holds all the same, for a read a refusal more."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from ratelimit.dynamodb import DynamoDBStore, create_table, parse_url
from ratelimit.limiter import Limiter
from ratelimit.names import Key
from ratelimit.policy import AlgorithmName, Policy
from ratelimit.store import Expect, Outcome, Put, Write
from ratelimit.testing import FakeClock
from tests.engines import Engine
from tests.faults import FaultServer
from tests.faults.oddities import of_engine

UNKNOWN = ("ReturnValuesOnConditionCheckFailure",)
ALGORITHMS: tuple[AlgorithmName, ...] = ("fixed_window", "sliding_window", "gcra")


@pytest.fixture(params=[True, False], ids=["fast", "slow"])
async def store(request: pytest.FixtureRequest, engine: Engine) -> AsyncIterator[DynamoDBStore]:
    settings = parse_url(engine.store_url(f"untold-{uuid4().hex[:8]}"))
    await create_table(settings)
    async with FaultServer() as server:
        server.always(of_engine(engine.endpoint, unknown=UNKNOWN))
        async with DynamoDBStore(settings, endpoint=server.endpoint, fast=request.param, read_timeout=60) as store:
            yield store


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_the_quota_holds(
    store: DynamoDBStore, algorithm: AlgorithmName, caplog: pytest.LogCaptureFixture
) -> None:
    """For two processes, one of which has never seen the record."""
    policy, clock = Policy("hint", "3/day", algorithm=algorithm), FakeClock()
    limiters = [Limiter(store, [policy], clock=clock, denial_cache=0) for _ in range(2)]
    decisions = [await limiters[number % 2].check("alice", "hint") for number in range(6)]
    assert [decision.allowed for decision in decisions] == [True] * 3 + [False] * 3
    assert {decision.reason for decision in decisions[3:]} == {"quota"}
    before = Counter(store.stats.calls)
    newcomer = Limiter(store, [policy], clock=clock)
    assert not (await newcomer.check("alice", "hint")).allowed
    assert Counter(store.stats.calls) - before == Counter(UpdateItem=1, GetItem=1)
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "ReturnValuesOnConditionCheckFailure" in warnings[0].getMessage()


async def test_a_record_that_is_not_there(store: DynamoDBStore, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is told of it by any engine."""
    write = Write((Expect("d1", 1, 5), Put("d1", 2)), 1_999_999_999)
    assert await store.apply(Key.of("alice", "hint"), write, now=0) == Outcome(False, {})
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_an_engine_that_tells_is_believed(engine: Engine) -> None:
    """Once it has told, a record of which it says nothing is not there: no read."""
    url = engine.store_url(f"told-{uuid4().hex[:8]}", create="true")
    async with DynamoDBStore(parse_url(url)) as store:
        for _ in range(2):
            await Limiter(store, [Policy("hint", "1/day")]).check("alice", "hint")
        write = Write((Expect("d1", 1, 5), Put("d1", 2)), 1_999_999_999)
        assert await store.apply(Key.of("bob", "hint"), write, now=0) == Outcome(False, {})
        assert "GetItem" not in store.stats.calls
