"""The same history gives the same decisions, with an event loop or without, whatever the store."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ratelimit import sync
from ratelimit.dynamodb import DynamoDBStore
from ratelimit.policy import AlgorithmName, Policy
from ratelimit.store import MemoryStore
from tests.engines import Engine
from tests.limiter.histories import ALGORITHMS, QUOTAS, History, steps
from tests.sync.contender import InThreads

Steps = list[tuple[float, int]]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(quotas=st.sampled_from(QUOTAS), history=steps)
@settings(max_examples=15)
def test_the_same_decisions_in_memory(algorithm: AlgorithmName, quotas: str, history: Steps) -> None:
    async def run() -> None:
        policy = Policy("hint", quotas, algorithm=algorithm)
        one, other = MemoryStore(), MemoryStore()
        blocking = History(one, policy, new_limiter=lambda *args, **options: InThreads(sync.Limiter(*args, **options)))
        on_a_loop = History(other, policy)
        for advance, cost in history:
            assert await blocking.step(advance, cost) == await on_a_loop.step(advance, cost)
        assert await one.read(blocking.key) == await other.read(on_a_loop.key)

    asyncio.run(run())


@pytest.fixture(scope="module")
def table(engine: Engine) -> Iterator[tuple[DynamoDBStore, sync.Store]]:
    """One table, for both; the asynchronous store is opened in the event loop of each example."""
    name = f"same-sync-{uuid4().hex[:8]}"
    with sync.open_store(f"dynamodb://{name}?region=eu-west-1&endpoint={engine.endpoint}&create=true") as store:
        yield DynamoDBStore(table=name, region="eu-west-1", endpoint=engine.endpoint), store


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(quotas=st.sampled_from(QUOTAS), history=steps)
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_same_decisions_on_dynamodb(
    table: tuple[DynamoDBStore, sync.Store], algorithm: AlgorithmName, quotas: str, history: Steps
) -> None:
    on_a_loop, blocking = table

    def new_limiter(_: object, *args: Any, **options: Any) -> InThreads:
        return InThreads(sync.Limiter(blocking, *args, **options))

    async def run() -> None:
        user = uuid4().hex
        policy = Policy("hint", quotas, algorithm=algorithm)
        in_memory = History(MemoryStore(), policy, user=user)
        async with on_a_loop:
            in_dynamodb = History(on_a_loop, policy, user=user, new_limiter=new_limiter)
            for advance, cost in history:
                assert await in_dynamodb.step(advance, cost) == await in_memory.step(advance, cost)
            assert await on_a_loop.read(in_dynamodb.key) == await in_memory.store.read(in_memory.key)

    asyncio.run(run())
