"""Each algorithm by itself, on any record and any belief: a wrong belief admits nobody, and every wait is exact."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratelimit.algorithms import Ops, Rule, Taken, rule
from ratelimit.algorithms.fields import bucket_field, window_field
from ratelimit.clock import SECOND
from ratelimit.names import Key
from ratelimit.policy import AlgorithmName, Policy
from ratelimit.quota import UNITS, Quota, Window
from ratelimit.store import MemoryStore, Put, Record, Write
from tests.limiter.histories import ALGORITHMS, MICROSECOND, QUOTAS, History, steps
from tests.profiles import examples

ALICE = Key("alice", "hint")
LATER = 2_000_000_000


class Case(NamedTuple):
    """A quota, a moment, a cost, and two records of which either may be the truth."""

    quota: Quota
    now: int
    cost: int
    truth: Record
    belief: Record


@st.composite
def cases(draw: st.DrawFn) -> Case:
    limit, window = draw(st.integers(0, 9)), Window(draw(st.integers(1, 3)), draw(st.sampled_from(UNITS)))
    now = draw(st.integers(1_700_000_000 * SECOND, 1_800_000_000 * SECOND))
    quota, cost = Quota(limit, window), draw(st.integers(1, limit + 1))
    truth, belief = draw(records(quota, now, cost)), draw(records(quota, now, cost))
    if draw(st.booleans()) and belief:  # only one field is not as it was
        name = draw(st.sampled_from(sorted(belief)))
        belief = {**truth, name: belief[name]}
    return Case(quota, now, cost, truth, belief)


@st.composite
def records(draw: st.DrawFn, quota: Quota, now: int, cost: int) -> Record:
    """The windows around `now` and a bucket, each there or not; what was charged afterwards may lie over the limit."""
    index, edge = quota.window.span(now).index, max(0, quota.limit - cost)
    units = st.sampled_from([edge, edge + 1]) | st.integers(0, 2 * quota.limit + 1)
    full = {window_field(quota.window, index - age): draw(units) for age in range(3)}
    # Whole units ahead of now or behind it, and the nanosecond on either side of that, where the edges are.
    interval = -(-quota.window.longest * 1000 // max(1, quota.limit))
    full[bucket_field(quota.window)] = (
        now * 1000 + draw(st.integers(-2, quota.limit + 1)) * interval + draw(st.integers(-1, 1))
    )
    missing = draw(st.none() | st.sampled_from(sorted(full)))
    return {} if draw(st.integers(0, 9)) == 0 else {name: full[name] for name in full if name != missing}


def write(truth: Record, ops: Ops, now: int) -> tuple[bool, Record]:
    """Whether these operations apply to the record, and what it is afterwards."""

    async def run() -> tuple[bool, Record]:
        store = MemoryStore()
        await store.apply(ALICE, Write(tuple(Put(name, value) for name, value in truth.items()), LATER), now=now)
        applied = (await store.apply(ALICE, Write(ops, LATER), now=now)).applied
        return applied, dict(await store.read(ALICE))

    try:
        run().send(None)  # nothing in it waits, and an event loop for each would take longer than the rest
    except StopIteration as done:
        written: tuple[bool, Record] = done.value
    return written


def fits(one: Rule, case: Case) -> bool:
    return one.state(case.now, case.cost, case.truth).retry_after == 0


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(cases())
@settings(max_examples=examples(200))
def test_no_belief_admits_what_the_truth_refuses(algorithm: AlgorithmName, case: Case) -> None:
    one = rule(algorithm, case.quota)
    ops = one.spend(case.now, case.cost, case.belief)
    if ops is None:
        return
    applied, after = write(case.truth, ops, case.now)
    if applied:
        assert fits(one, case)
        assert one.state(case.now, 1, after).used >= case.cost
    else:
        assert after == case.truth


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(cases())
def test_a_true_belief_admits_exactly_what_fits(algorithm: AlgorithmName, case: Case) -> None:
    one = rule(algorithm, case.quota)
    ops = one.spend(case.now, case.cost, case.truth)
    assert (ops is not None) == fits(one, case)
    if ops is not None:
        before = one.state(case.now, 1, case.truth)
        applied, record = write(case.truth, ops, case.now)
        assert applied
        assert one.state(case.now, 1, record).remaining == before.remaining - case.cost


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(cases())
def test_it_fits_at_retry_after_and_not_a_microsecond_earlier(algorithm: AlgorithmName, case: Case) -> None:
    one = rule(algorithm, case.quota)
    wait = one.state(case.now, case.cost, case.truth).retry_after
    if wait is None:
        assert case.cost > one.max_cost
    elif wait > 0:
        then = case.now + round(wait * SECOND)
        assert one.spend(then - 1, case.cost, case.truth) is None
        assert one.spend(then, case.cost, case.truth) is not None


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(cases())
def test_a_refund_of_what_was_charged_leaves_nothing_of_it(algorithm: AlgorithmName, case: Case) -> None:
    one = rule(algorithm, case.quota)
    before = one.state(case.now, 1, case.truth).used
    charged, record = write(case.truth, one.charge(case.now, case.cost, case.truth), case.now)
    assert charged
    assert one.state(case.now, 1, record).used == before + case.cost
    returned, record = write(record, one.refund(case.now, case.cost, record, Taken(case.now, case.cost), 0), case.now)
    assert returned
    assert one.state(case.now, 1, record).used == before


def test_a_bucket_is_never_refilled_faster_than_its_quota_says() -> None:
    """Seven a second are not a whole number of nanoseconds apart; over a day the rest adds up."""
    one, now = rule("gcra", Quota(7, "second")), 1_700_000_000 * SECOND
    _, record = write({}, one.charge(now, 7 * 86_400, {}), now)
    assert 86_400 < one.state(now, 1, record).reset_after < 86_400.001


# The promises of every algorithm, on random histories: exact, truthful, and a refusal spends nothing.


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
