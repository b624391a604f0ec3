"""The promises of every algorithm, on random histories: exact, truthful, and a refusal spends nothing."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratelimit.policy import AlgorithmName, Policy
from ratelimit.quota import Quota
from ratelimit.store import MemoryStore
from tests.limiter.histories import ALGORITHMS, MICROSECOND, QUOTAS, History, steps
from tests.profiles import examples


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(quotas=st.sampled_from(QUOTAS), history=steps)
@settings(max_examples=examples(150), deadline=None)
def test_random_histories(algorithm: AlgorithmName, quotas: str, history: list[tuple[float, int]]) -> None:
    async def run() -> None:
        one = History(MemoryStore(), Policy("hint", quotas, algorithm=algorithm))
        for advance, cost in history:
            await one.step(advance, cost)

    asyncio.run(run())


async def test_a_clock_slightly_behind_still_finds_the_window_before_its_own() -> None:
    one = History(MemoryStore(), Policy("hint", "5/second", algorithm="sliding_window"))
    for advance, cost in ((0.9, 5), (1.12, 1), (0, 1)):
        assert (await one.step(advance, cost)).allowed
    assert not (await one.step(-0.92, 5)).allowed


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(quotas=st.sampled_from(QUOTAS), history=steps)
@settings(max_examples=examples(80), deadline=None)
def test_whoever_comes_back_as_told_gets_in(
    algorithm: AlgorithmName, quotas: str, history: list[tuple[float, int]]
) -> None:
    """By checks, which spend; the history above only looks."""

    async def run() -> None:
        one = History(MemoryStore(), Policy("hint", quotas, algorithm=algorithm))
        for advance, cost in history:
            refused = await one.step(abs(advance), cost)
            if wait := refused.retry_after:
                assert not (await one.step(wait - MICROSECOND, cost)).allowed
                assert (await one.step(MICROSECOND, cost)).allowed

    asyncio.run(run())


@given(st.integers(1, 50), st.integers(1, 60), st.integers(1, 30), steps)
@settings(max_examples=examples(150), deadline=None)
def test_buckets_of_any_burst(limit: int, window: int, burst: int, history: list[tuple[float, int]]) -> None:
    async def run() -> None:
        quota = Quota(limit, f"{window} seconds", burst=burst)
        one = History(MemoryStore(), Policy("hint", quota, algorithm="gcra"))
        for advance, cost in history:
            await one.step(advance, cost)

    asyncio.run(run())
