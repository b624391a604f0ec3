"""What a check costs on DynamoDB, as the engine itself counts it: calls, and consumed write units."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from ratelimit.dynamodb import DynamoDBStore
from ratelimit.limiter import Limiter
from ratelimit.policy import AlgorithmName, Policy
from ratelimit.testing import FakeClock
from tests.engines import Engine

MIXES = ["1000/day", "100/hour; 1000/day", "50/minute; 100/hour; 1000/day"]
ALGORITHMS: tuple[AlgorithmName, ...] = ("fixed_window", "sliding_window", "gcra")


@pytest.fixture
async def store(engine: Engine) -> AsyncIterator[DynamoDBStore]:
    name = f"units-{uuid4().hex[:8]}"
    async with DynamoDBStore(
        table=name, region="eu-west-1", endpoint=engine.endpoint, create=True, consumed=True
    ) as store:
        yield store


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("quotas", MIXES)
async def test_a_warm_check_is_one_call_and_one_write_unit(
    store: DynamoDBStore, algorithm: AlgorithmName, quotas: str
) -> None:
    clock = FakeClock()
    limiter = Limiter(store, [Policy("hint", quotas, algorithm=algorithm)], clock=clock, deadline=10)
    for _ in range(40):  # as many days of totals as an item ever holds
        assert (await limiter.check("alice", "hint")).allowed
        clock.advance(86_400)
    await limiter.check("alice", "hint")
    before = store.stats.calls.copy(), store.stats.write_units
    for _ in range(5):
        clock.advance(0.001)
        assert (await limiter.check("alice", "hint")).allowed
    calls = {name: n - before[0][name] for name, n in store.stats.calls.items() if n != before[0][name]}
    assert (calls, store.stats.write_units - before[1]) == ({"UpdateItem": 5}, 5.0)
