"""GCRA's own promises: a limit that changes, debts that outlast a record's days, refunds that hand out nothing new."""

from __future__ import annotations

import asyncio
import random
from itertools import combinations
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratelimit import Decision, Limiter, MemoryStore, Policy, Quota
from ratelimit.clock import SECOND
from ratelimit.dynamodb import DynamoDBStore
from ratelimit.names import Key
from ratelimit.store import Add, Expect, Store
from ratelimit.testing import FakeClock
from tests.engines import Engine
from tests.limiter.stores import CountingStore, YieldingStore
from tests.profiles import examples

ALICE = Key("alice", "hint")
DAY = 86_400


def limiter(quotas: str | Quota, store: Store, clock: FakeClock, **options: Any) -> Limiter:
    policy = Policy("hint", quotas, algorithm="gcra")
    return Limiter(store, [policy], clock=clock, **{"denial_cache": 0, **options})


async def spend(one: Limiter, times: int) -> int:
    return sum([bool(await one.check("alice", "hint")) for _ in range(times)])


# --- a limit that changes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "left"),
    [
        ("10/day", "1000/day", 990),
        ("10/day", "11/day", 1),
        ("10/day", "20/day burst 15", 5),
        ("1000/day", "10/day", 0),
        ("1000/day", "12/day", 2),
        ("10/second", "25/second", 15),
        ("7/month", "9/month", 2),
        ("10/day", "10/day burst 13", 3),
        ("10/day; 40/month", "15/day; 40/month", 5),
    ],
)
async def test_units_used_stay_units_used(before: str, after: str, left: int) -> None:
    store, clock = MemoryStore(), FakeClock()
    old, new = limiter(before, store, clock), limiter(after, store, clock)
    await old.check("alice", "hint", cost=min(10, (await old.peek("alice", "hint")).remaining or 0))
    used = (await old.peek("alice", "hint")).used
    peeked = await new.peek("alice", "hint")
    assert (peeked.quotas[0].used, peeked.quotas[0].remaining) == (used, left)
    assert await spend(new, left + 3) == left
    assert (await new.peek("alice", "hint")).quotas[0].used == used + left


async def test_a_process_that_has_not_heard_of_another_limit_counts_no_units_by_its_own() -> None:
    store, clock = MemoryStore(), FakeClock()
    small, large = limiter("10/day", store, clock), limiter("1000/day", store, clock)
    for one in (small, large, small):  # at last, its cached record is of the time before the other one
        assert await one.check("alice", "hint")
    assert [(await one.peek("alice", "hint")).used for one in (small, large)] == [3, 3]


@pytest.mark.parametrize(("before", "after"), [("10/day burst 5", "100/day burst 5"), ("10/day", "20/day")])
async def test_a_faster_refill_is_in_force_from_the_first_refusal(before: str, after: str) -> None:
    store, clock = CountingStore(), FakeClock()
    old, new = limiter(before, store, clock), limiter(after, store, clock)
    await old.charge("alice", "hint", 30)
    clock.advance(1)
    refused = await new.check("alice", "hint")
    (quota,) = new.policies["hint"].quotas
    interval = DAY / quota.limit
    owed = 31 - (quota.burst or quota.limit) - 1 * 10 / DAY  # units, those refilled in a second already off
    assert refused.retry_after == pytest.approx(interval * owed, abs=0.001)
    assert refused.retry_after is not None
    clock.advance(refused.retry_after - 1e-6)
    assert not await new.check("alice", "hint")
    clock.advance(1e-6)
    store.taken()
    assert await new.check("alice", "hint")
    assert store.taken() == {"apply": 1}, "from then on it is as any other"


async def test_a_slower_refill_loses_nothing_to_those_who_wait() -> None:
    store, clock = MemoryStore(), FakeClock()
    old, new = limiter("1000/day", store, clock), limiter("10/day", store, clock)
    await old.check("alice", "hint", cost=500)
    refused = await new.check("alice", "hint")
    assert (refused.used, refused.retry_after) == (500, pytest.approx(491 * DAY / 1000))
    clock.advance(refused.retry_after or 0)
    assert await spend(new, 3) == 1
    assert (await new.peek("alice", "hint")).retry_after == pytest.approx(DAY / 10)


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.0, 0.1, 1.0, 30.0, 400.0]), st.integers(0, 2), st.integers(1, 4)), max_size=40
    )
)
@settings(max_examples=examples(150), deadline=None)
def test_old_and_new_limits_together_never_admit_more_than_the_larger(steps: list[tuple[float, int, int]]) -> None:
    """Processes with different configurations, as while one takes the place of the other."""
    quotas = [Quota(5, "minute"), Quota(40, "minute", burst=9), Quota(20, "minute", burst=3)]

    async def run() -> None:
        store, clock = MemoryStore(), FakeClock()
        several = [limiter(quota, store, clock) for quota in quotas]
        admitted: list[tuple[int, int]] = []
        for wait, which, cost in steps:
            clock.advance(wait)
            decision = await several[which].check("alice", "hint", cost=cost)
            if decision:
                admitted.append((clock.now(), cost))
                assert decision.used <= (quotas[which].burst or quotas[which].limit)
            elif decision.retry_after is not None:
                clock.advance(decision.retry_after)
                assert await several[which].peek("alice", "hint", cost=cost)
                clock.advance(-1e-6)
                assert not await several[which].peek("alice", "hint", cost=cost)
                clock.advance(1e-6 - decision.retry_after)
            assert_bucket(admitted, burst=9, rate=40 / 60)

    asyncio.run(run())


@pytest.mark.parametrize("kind", ["memory", "dynamodb"])
async def test_a_hot_bucket_under_two_limits_is_decided_by_the_store(kind: str, request: pytest.FixtureRequest) -> None:
    """None is let pass unasked, because the record kept changing under it."""
    store: Store = YieldingStore()
    if kind == "dynamodb":
        engine: Engine = request.getfixturevalue("engine")
        store = DynamoDBStore(table=f"hot-{uuid4().hex[:8]}", region="eu-west-1", endpoint=engine.endpoint, create=True)
        await store.open()
    clock = FakeClock()
    several = [limiter(quota, store, clock) for quota in ("60/day", "90/day") for _ in range(6)]

    async def all_of(one: Limiter) -> list[Decision]:
        return [await one.check("alice", "hint") for _ in range(12)]

    decisions = [one for some in await asyncio.gather(*map(all_of, several)) for one in some]
    assert not [one for one in decisions if one.reason == "unavailable"]
    assert sum(map(bool, decisions)) == 90
    await store.close()


async def test_a_warm_check_is_one_write_of_the_same_few_operations() -> None:
    store, clock = CountingStore(), FakeClock()
    one = limiter("10/day", store, clock)
    await spend(one, 2)
    store.taken()
    await one.check("alice", "hint")
    assert store.taken() == {"apply": 1}
    assert [type(op) for op in store.writes[-1].ops] == [Expect, Expect, Add, Add, Add]


# --- debts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["check", "refund", "peek", "reset-elsewhere"])
async def test_a_debt_is_kept_as_long_as_it_lasts(verb: str) -> None:
    store, clock = CountingStore(), FakeClock()
    one, other = limiter("1/day", store, clock), limiter("1/day", store, clock)
    await other.peek("alice", "hint")
    await one.charge("alice", "hint", 2000)
    ends = clock.now() // SECOND + 2000 * DAY
    if verb == "check":
        await other.check("alice", "hint", quotas="5/minute")
    elif verb == "refund":
        await other.refund("alice", "hint", 1)
    elif verb == "reset-elsewhere":
        await other.charge("alice", "hint", 1)
    if verb != "check":  # which does not know of it yet, and is not the one that reads it
        assert store.writes[-1].expires_at >= ends - DAY
    await one.check("alice", "hint", quotas="7/hour")
    assert store.writes[-1].expires_at >= ends - DAY
    clock.advance(1500 * DAY)
    for number in range(100):  # each sweeps what has expired
        await one.check(f"user-{number}", "hint")
    assert (await limiter("1/day", store, clock).peek("alice", "hint")).used in (499, 500, 501)


async def test_what_others_charge_meanwhile_is_kept_as_well() -> None:
    store, clock = CountingStore(), FakeClock()
    several = [limiter("1/day", store, clock) for _ in range(4)]
    for one in several:
        await one.peek("alice", "hint")
    for one in several:
        await one.charge("alice", "hint", 1000)
        assert store.writes[-1].expires_at * SECOND >= clock.now() + _ahead(await store.read(ALICE), clock)


async def test_a_burst_longer_than_a_record_is_kept_is_no_debt_but_lasts() -> None:
    store, clock = CountingStore(), FakeClock()
    one = limiter("1/day burst 1000", store, clock)
    assert await spend(one, 500) == 500
    assert store.writes[-1].expires_at * SECOND >= clock.now() + _ahead(await store.read(ALICE), clock)


def _ahead(record: Any, clock: FakeClock) -> int:
    ahead: int = record["gd"] // 1000 - clock.now()
    return ahead


# --- refunds ------------------------------------------------------------------------------------------------------


async def test_what_has_refilled_is_not_given_back() -> None:
    clock = FakeClock()
    one = limiter("10/second", MemoryStore(), clock)
    decisions = [await one.check("alice", "hint") for _ in range(10)]
    clock.advance(1)
    again = await spend(one, 10)
    for decision in decisions:
        await one.refund(decision)
    assert (again, await spend(one, 10)) == (10, 0)


@pytest.mark.parametrize("cost", [1, 2, 5, 10])
@pytest.mark.parametrize("wait", [0.0, 0.013, 0.25, 0.5, 0.999, 1.0, 3.0])
async def test_all_that_is_given_back_in_order_leaves_a_full_bucket(cost: int, wait: float) -> None:
    clock = FakeClock()
    one = limiter("10/second", MemoryStore(), clock)
    decisions = []
    for _ in range(10 // cost):
        decisions.append(await one.check("alice", "hint", cost=cost))
        clock.advance(0.001)
    clock.advance(wait)
    for decision in decisions:
        await one.refund(decision)
        clock.advance(0.0005)
    assert await spend(one, 11) == 10


async def test_at_once_it_is_given_back_in_any_order() -> None:
    one = limiter("10/second", MemoryStore(), FakeClock())
    for _ in range(20):
        decisions = [await one.check("alice", "hint") for _ in range(10)]
        random.shuffle(decisions)
        for decision in decisions:
            await one.refund(decision)
        assert (await one.peek("alice", "hint")).used == 0


async def test_many_are_given_back_at_the_same_time() -> None:
    one = limiter("100/day", YieldingStore(), FakeClock())
    decisions = [await one.check("alice", "hint") for _ in range(60)]
    await asyncio.gather(*map(one.refund, decisions))
    assert (await one.peek("alice", "hint")).used == 0


async def test_units_are_given_back_though_the_limit_has_changed() -> None:
    store, clock = MemoryStore(), FakeClock()
    old, new = limiter("10/day", store, clock), limiter("1000/day", store, clock)
    decisions = [await old.check("alice", "hint", cost=2) for _ in range(5)]
    assert await spend(new, 5) == 5
    for decision in decisions[:4]:
        await new.refund(decision)
    assert (await new.peek("alice", "hint")).used == 7
    lowered = limiter("20/day", store, clock)
    assert await spend(lowered, 20) == 13
    await lowered.refund(decisions[4])
    assert (await lowered.peek("alice", "hint")).used == 18


steps = st.lists(
    st.one_of(
        st.tuples(st.just("check"), st.sampled_from([0.0, 0.0, 0.05, 0.1, 0.33, 1.0, 2.5]), st.integers(1, 9)),
        st.tuples(st.just("refund"), st.sampled_from([0.0, 0.0, 0.02, 0.2, 0.5]), st.integers(0, 30)),
        st.tuples(st.just("part"), st.sampled_from([0.0, 0.1]), st.integers(0, 30)),
    ),
    max_size=40,
)


@given(steps, st.sampled_from(["10/second", "10/second burst 25", "3/second; 20/minute"]), st.booleans())
@settings(max_examples=examples(200), deadline=None)
def test_a_refund_never_lets_more_pass_than_the_bucket_holds(
    history: list[tuple[str, float, int]], quotas: str, two: bool
) -> None:
    """By the definition: of what was admitted and kept, between any two moments at most a bucket and its refill."""

    async def run() -> None:
        store, clock = MemoryStore(), FakeClock()
        one = limiter(quotas, store, clock)
        other = limiter(quotas, store, clock) if two else one
        made: list[Decision] = []
        for number, (verb, wait, value) in enumerate(history):
            clock.advance(wait)
            acting = one if number % 2 else other
            if verb == "check":
                if decision := await acting.check("alice", "hint", cost=value):
                    made.append(decision)
            elif made and verb == "refund":
                await acting.refund(made[value % len(made)])
            elif made:
                await acting.refund(made[value % len(made)], cost=1 + value % 3)
            kept = [(decision.at_us, decision.spent - decision.refunded) for decision in made]
            for quota in one.policies["hint"].quotas:
                assert_bucket(kept, burst=quota.burst or quota.limit, rate=quota.limit * SECOND / quota.window.longest)

    asyncio.run(run())


def assert_bucket(kept: list[tuple[int, int]], *, burst: int, rate: float) -> None:
    """`rate` a second."""
    moments = sorted({at for at, _ in kept})
    for first, last in [*combinations(moments, 2), *((at, at) for at in moments)]:
        spent = sum(cost for at, cost in kept if first <= at <= last)
        assert spent <= burst + rate * (last - first) / SECOND + 1e-6


@pytest.mark.parametrize("algorithm", ["fixed_window", "sliding_window"])
async def test_windows_keep_their_units_through_any_change_of_limit(algorithm: Any) -> None:
    store, clock = MemoryStore(), FakeClock()
    for quotas, left in (("10/day", 10), ("15/day", 5), ("12/day", 0), ("1000/day", 985)):
        one = Limiter(store, [Policy("hint", quotas, algorithm=algorithm)], clock=clock)
        assert await spend(one, left + 2) == left
    for changed in ("fixed_window", "sliding_window"):
        one = Limiter(store, [Policy("hint", "1000/day", algorithm=changed)], clock=clock)
        assert (await one.peek("alice", "hint")).used == 1000


@pytest.mark.parametrize("seed", range(3))
async def test_both_stores_convert_and_give_back_alike(table: DynamoDBStore, seed: int) -> None:
    rng, user = random.Random(seed), uuid4().hex
    async with table:
        records = []
        for store in (MemoryStore(), table):
            rng.seed(seed)
            clock = FakeClock()
            several = [
                limiter(quotas, store, clock) for quotas in ("5/minute", "40/minute burst 9", "20/minute burst 3")
            ]
            made: list[Decision] = []
            answers: list[tuple[bool, int, float | None]] = []
            for _ in range(60):
                clock.advance(rng.choice([0, 0, 0.1, 3, 50]))
                one = rng.choice(several)
                if rng.random() < 0.3 and made:
                    await one.refund(rng.choice(made))
                    continue
                decision = await one.check(user, "hint", cost=rng.randint(1, 3))
                answers.append((bool(decision), decision.used, decision.retry_after))
                made += [decision] if decision else []
            records.append((answers, dict(await store.read(Key(user, "hint")))))
    assert records[0] == records[1]
