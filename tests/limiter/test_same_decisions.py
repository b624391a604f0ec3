"""The same history gives the same decisions, whatever the store."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ratelimit import Decision, MemoryStore, Policy
from ratelimit.dynamodb import DynamoDBStore
from ratelimit.policy import AlgorithmName
from tests.limiter.histories import ALGORITHMS, QUOTAS, History, JointHistory, joint_steps, steps


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(quotas=st.sampled_from(QUOTAS), history=steps)
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_same_decisions_on_dynamodb(
    table: DynamoDBStore, algorithm: AlgorithmName, quotas: str, history: list[tuple[float, int]]
) -> None:
    async def run() -> None:
        user = uuid4().hex
        policy = Policy("hint", quotas, algorithm=algorithm)
        in_memory = History(MemoryStore(), policy, user=user)
        async with table:
            in_dynamodb = History(table, policy, user=user)
            for advance, cost in history:
                assert await in_dynamodb.step(advance, cost) == await in_memory.step(advance, cost)
            assert await table.read(in_dynamodb.key) == await in_memory.store.read(in_memory.key)

    asyncio.run(run())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(user=st.sampled_from(QUOTAS), org=st.sampled_from(QUOTAS), history=joint_steps)
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_same_joint_decisions_on_dynamodb(
    table: DynamoDBStore, algorithm: AlgorithmName, user: str, org: str, history: list[tuple[float, str, int]]
) -> None:
    async def run() -> None:
        prefix = uuid4().hex
        policies = Policy("user", user, algorithm=algorithm), Policy("org", org)
        in_memory = JointHistory(MemoryStore(), *policies, prefix=prefix)
        async with table:
            in_dynamodb = JointHistory(table, *policies, prefix=prefix)
            for advance, name, cost in history:
                ours, theirs = [await one.step(advance, name, cost) for one in (in_dynamodb, in_memory)]
                assert all(ours[0]) == all(theirs[0])
                if ours[0] == theirs[0]:  # what is told of who does not refuse may be a second old
                    assert _told(ours[1]) == _told(theirs[1])
            for one in (*in_memory.users.values(), in_memory.orgs):
                assert await table.read(one.key) == await in_memory.store.read(one.key)

    asyncio.run(run())


def _told(refused: Decision | None) -> Decision | None:
    """Leave out what is told of quotas that can never admit this: it is what the process has seen last."""
    if refused is not None and refused.reason == "too_large":
        return msgspec.structs.replace(refused, quotas=())
    return refused
