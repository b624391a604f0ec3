"""Leases: never more than the quota, whoever holds what; and nothing kept back for longer than promised."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import date
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratelimit import ConfigError, Limiter, MemoryStore, Policy, StoreThrottled
from ratelimit.clock import SECOND, Clock
from ratelimit.limiter import leasing as leases
from ratelimit.policy import Lease
from ratelimit.store import Outcome, Store
from ratelimit.testing import FakeClock, virtual_time
from tests.limiter.stores import CountingStore, FailingStore, failing
from tests.profiles import examples

TODAY = date(2026, 1, 5)


def leasing(store: CountingStore, lease: Lease = 50, quotas: str = "1000/day", clock: Clock | None = None) -> Limiter:
    policy = Policy("hint", quotas, lease=lease, on_unavailable="deny")
    return Limiter(store, [policy], clock=clock or FakeClock(), denial_cache=0)


async def counted(limiter: Limiter, user: str) -> int:
    """Units that the store counts, those that are held included."""
    return sum((await limiter.totals(user))["hint"].values())


async def test_one_write_pays_for_many_checks() -> None:
    store = CountingStore()
    one = leasing(store, lease=50)
    decisions = [await one.check("alice", "hint") for _ in range(51)]
    assert store.taken() == {"apply": 1}
    assert [decision.used for decision in decisions] == list(range(1, 52))
    assert [decision.remaining for decision in decisions] == list(range(999, 948, -1))
    await one.check("alice", "hint")
    assert store.taken() == {"apply": 1}


async def test_what_was_taken_ahead_is_held_though_the_one_who_waited_has_gone() -> None:
    class Late(CountingStore):
        async def apply(self, *args: Any, **options: Any) -> Outcome:
            outcome = await super().apply(*args, **options)
            await answered.wait()
            return outcome

    answered, store = asyncio.Event(), Late()
    one = leasing(store, lease=50)
    asking = asyncio.create_task(one.check("alice", "hint"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait([asking])
    answered.set()
    for _ in range(10):  # turns of the loop, in which it is taken
        await asyncio.sleep(0)
    assert store.taken() == {"apply": 1}
    assert await one.check("alice", "hint")
    assert store.taken() == {}, "which is paid from it"
    await one.close()
    assert await counted(leasing(store), "alice") == 2


async def test_what_is_left_goes_back_at_shutdown() -> None:
    store = CountingStore()
    one = leasing(store, lease=50)
    for _ in range(10):
        await one.check("alice", "hint")
    await one.close()
    other = leasing(store)
    assert (await other.peek("alice", "hint")).used == 10
    assert await other.totals("alice") == {"hint": {TODAY: 10}}


async def test_what_is_left_goes_back_when_the_window_ends() -> None:
    store, clock, quotas = CountingStore(), FakeClock(), "400/hour; 1000/day"
    one = leasing(store, lease=50, quotas=quotas, clock=clock)
    for _ in range(10):
        await one.check("alice", "hint")
    clock.advance(3600)
    assert (await one.check("alice", "hint")).quotas[0].used == 1
    await one.close()
    seen = await leasing(store, quotas=quotas, clock=clock).peek("alice", "hint")
    assert [state.used for state in seen.quotas] == [1, 11]


async def test_an_idle_keys_units_go_back_while_others_are_busy() -> None:
    store, clock = CountingStore(), FakeClock()
    one = leasing(store, lease=50, clock=clock)
    await one.check("alice", "hint")
    clock.advance(6)
    await one.check("bob", "hint")
    await one._checker.background.tasks.drain()
    assert await counted(one, "alice") == 1


def test_an_idle_keys_units_go_back_though_nobody_asks_for_anything() -> None:
    async def run() -> None:
        store, clock = CountingStore(), virtual_time.VirtualClock(asyncio.get_running_loop())
        one = leasing(store, lease=50, clock=clock)
        await one.check("alice", "hint")
        await asyncio.sleep(4)
        assert await counted(one, "alice") == 51
        await asyncio.sleep(3)
        assert await counted(one, "alice") == 1

    virtual_time.run(run())


async def test_units_that_are_being_taken_while_all_are_returned_go_back_too() -> None:
    store, gate = FailingStore(), asyncio.Event()
    store.fault = gate.wait  # type: ignore[assignment]
    one = leasing(store, lease=50)
    asked = asyncio.create_task(one.check("alice", "hint"))
    await asyncio.sleep(0)
    closing = asyncio.create_task(one.close())
    await asyncio.sleep(0)
    gate.set()
    assert (await asked).allowed
    await closing
    await one.open()
    assert await counted(one, "alice") == 1


async def test_a_clock_that_steps_ahead_loses_nothing_that_is_being_taken() -> None:
    store, clock, gate = FailingStore(), FakeClock(), asyncio.Event()
    store.fault = gate.wait  # type: ignore[assignment]
    one = leasing(store, lease=50, clock=clock)
    asked = asyncio.create_task(one.check("alice", "hint"))
    await asyncio.sleep(0)
    clock.advance(60)
    store.fault = None
    await one.check("bob", "hint")
    gate.set()
    assert (await asked).allowed
    await one.close()
    await one.open()
    assert await counted(one, "alice") == 1


async def test_a_process_that_holds_much_returns_it_some_at_a_time() -> None:
    store, under_way, most = FailingStore(), 0, 0
    one = leasing(store, lease=5)
    for user in range(200):
        await one.check(f"user-{user}", "hint")

    async def slow() -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1

    store.fault = slow
    await one.close()
    assert 1 < most <= 32
    store.fault = None
    await one.open()
    assert [await counted(one, f"user-{user}") for user in range(200)] == [1] * 200


async def test_a_reset_forgets_what_is_held() -> None:
    one = leasing(CountingStore(), lease=20, quotas="100/day")
    await one.check("alice", "hint")
    await one.reset("alice", "hint")
    assert sum([(await one.check("alice", "hint")).allowed for _ in range(150)]) == 100


async def test_a_grant_shows_no_impossible_state_where_little_is_remembered() -> None:
    policy = Policy("hint", "20/day", lease=5)
    one = Limiter(CountingStore(), [policy], clock=FakeClock(), max_beliefs=1)
    await one.check("alice", "hint")
    await one.check("bob", "hint")
    granted = await one.check("alice", "hint")
    assert granted.used >= 0
    assert granted.remaining is not None
    assert granted.remaining <= 20


async def test_what_is_held_is_no_refusal() -> None:
    """The store counts it as spent, but not this process: nor does a look at what a check would answer."""
    store = CountingStore()
    policy = Policy("hint", "10/day", lease=4, on_unavailable="deny")
    one, other = Limiter(store, [policy], clock=FakeClock()), leasing(store, quotas="10/day")
    await one.check("alice", "hint", cost=2)
    held = (await counted(one, "alice")) - 2
    assert held > 0
    await other.charge("alice", "hint", 10 - 2 - held - 1)
    assert not (await one.check("alice", "hint", cost=held + 2)).allowed
    assert (await one.peek("alice", "hint", cost=held + 1)).allowed
    assert (await one.check("alice", "hint", cost=held + 1)).allowed


@pytest.mark.parametrize("lease", [10, "auto"])
@pytest.mark.parametrize("make", [CountingStore, MemoryStore])
async def test_what_has_no_limit_needs_no_lease(make: Callable[[], Store], lease: Lease) -> None:
    clock = FakeClock()
    one = Limiter(make(), [Policy("hint", "5/day", lease=lease)], clock=clock)
    for _ in range(50):
        assert (await one.check("admin", "hint", quotas="unlimited")).allowed
        clock.advance(0.001)
    assert await counted(one, "admin") == 50


async def test_the_last_units_are_not_all_held_by_who_came_first() -> None:
    store = CountingStore()
    one, other = leasing(store, lease=100, quotas="60/day"), leasing(store, lease=100, quotas="60/day")
    await one.check("alice", "hint")
    assert (await other.check("alice", "hint")).allowed


@given(
    limit=st.integers(1, 60),
    lease=st.one_of(st.integers(1, 30), st.just("auto")),
    steps=st.lists(
        st.tuples(st.integers(0, 3), st.integers(1, 4), st.sampled_from([0.0, 0.01, 1.0, 7.0])), max_size=60
    ),
)
@settings(max_examples=examples(150))
def test_processes_with_leases_never_over_admit(limit: int, lease: Lease, steps: list[tuple[int, int, float]]) -> None:
    async def run() -> None:
        store, clock = CountingStore(), FakeClock()
        processes = [leasing(store, lease, f"{limit}/day", clock) for _ in range(4)]
        admitted = 0
        for number, cost, pause in steps:
            clock.advance(pause)
            decision = await processes[number].check("alice", "hint", cost=cost)
            admitted += cost if decision.allowed else 0
            assert admitted <= limit
        for process in processes:
            await process.close()
        totals = await leasing(store, lease, f"{limit}/day", clock).totals("alice")
        assert sum(totals["hint"].values()) == admitted

    asyncio.run(run())


async def test_everything_is_admitted_in_the_end_where_one_process_asks() -> None:
    one = leasing(CountingStore(), lease=7, quotas="100/day")
    allowed = [(await one.check("alice", "hint")).allowed for _ in range(120)]
    assert allowed == [True] * 100 + [False] * 20


async def test_auto_takes_nothing_ahead_for_a_quiet_key_and_more_for_a_busy_one() -> None:
    store, clock = CountingStore(), FakeClock()
    one = leasing(store, lease="auto", quotas="1000000/day", clock=clock)
    for _ in range(5):
        await one.check("alice", "hint")
        clock.advance(10)
    assert await counted(one, "alice") == 5
    store.taken()
    for _ in range(2000):
        await one.check("bob", "hint")
        clock.advance(0.001)
    assert store.taken()["apply"] < 100


async def test_auto_writes_more_seldom_when_throttled() -> None:
    store, clock = FailingStore(), FakeClock()
    one = leasing(store, lease="auto", quotas="1000000/day", clock=clock)

    async def writes(checks: int) -> int:
        store.taken()
        for _ in range(checks):
            await one.check("alice", "hint")
            clock.advance(0.001)
        return store.taken().get("apply", 0)

    await writes(500)
    before = await writes(1000)
    store.fault = failing(StoreThrottled("slow down"))
    await writes(500)
    store.fault = None
    assert await writes(1000) < before


def test_a_lease_shrinks_again_once_writes_go_through() -> None:
    lease, now, counted = leases.Lease(0), 0, 0
    for _ in range(4):
        lease.throttled()
    taken = []
    for _ in range(40):
        now, counted, lease.requested = now + SECOND, counted + 1000, 1000
        lease.observe_total(counted, now)
        taken.append(lease.prefetch("auto", now).ahead)
    assert taken[1] > 1000  # more than a second's, after four throttles
    assert taken[1:] == sorted(taken[1:], reverse=True)
    assert taken[-1] == 100  # a tenth of a second's, as before


async def test_what_is_held_is_not_topped_up_by_checks_that_waited_for_it() -> None:
    store, gate = FailingStore(), asyncio.Event()
    store.fault = gate.wait  # type: ignore[assignment]
    one = leasing(store, lease=50)
    checks = [asyncio.create_task(one.check("alice", "hint")) for _ in range(40)]
    await asyncio.sleep(0)
    gate.set()
    assert all([(await check).allowed for check in checks])
    assert store.taken() == {"apply": 1}
    assert (await one.totals("alice"))["hint"][TODAY] == 51


async def test_auto_sizes_by_what_was_asked_though_it_was_throttled() -> None:
    store, clock = FailingStore(), FakeClock()
    one = leasing(store, lease="auto", quotas="1000000/day", clock=clock)
    store.fault = failing(StoreThrottled("slow down"))
    for _ in range(1000):
        await one.check("alice", "hint")
        clock.advance(0.001)
    store.fault = None
    await one.check("alice", "hint")
    store.taken()
    for _ in range(1000):
        await one.check("alice", "hint")
        clock.advance(0.001)
    assert "apply" not in store.taken()


async def test_auto_shares_the_items_writes_among_all_processes() -> None:
    """100 processes, 100 checks a second each: 0.1 s ahead would be 1,000 writes a second, without any throttle."""
    store, clock = CountingStore(), FakeClock()
    processes = [leasing(store, "auto", "10000000/day", clock) for _ in range(100)]

    async def writes(seconds: int) -> int:
        store.taken()
        for _ in range(seconds * 100):
            for process in processes:
                await process.check("alice", "hint")
            clock.advance(0.01)
        return store.taken()["apply"]

    await writes(1)
    assert await writes(1) < 600


async def test_auto_starts_with_a_second_of_its_own_demand() -> None:
    """Before it has seen what everybody takes: else 50 processes that wake up together write once for each check."""
    store, clock = CountingStore(), FakeClock()
    processes = [leasing(store, "auto", "1000000/day", clock) for _ in range(50)]
    for _ in range(20):
        for process in processes:
            await process.check("alice", "hint")
            clock.advance(0.001)
    assert store.taken()["apply"] <= 3 * 50


async def test_auto_takes_next_to_nothing_of_a_small_quota_before_it_knows_who_else_asks() -> None:
    store = CountingStore()
    one = leasing(store, lease="auto", quotas="100/day")
    for asked in range(1, 6):
        await one.check("alice", "hint")
        assert await counted(one, "alice") == asked


async def test_a_key_that_is_asked_for_is_not_idle() -> None:
    store, clock = CountingStore(), FakeClock()
    one = leasing(store, lease=50, clock=clock)
    for _ in range(10):
        await one.check("alice", "hint")
        await one.check("bob", "hint", cost=50)
        clock.advance(1)
    await one._checker.background.tasks.drain()
    assert await counted(one, "alice") == 51


async def test_a_failed_spending_keeps_what_was_held() -> None:
    store = FailingStore()
    one = leasing(store, lease=5)
    await one.check("alice", "hint", cost=1)
    store.fault = failing(StoreThrottled("slow down"))
    assert (await one.check("alice", "hint", cost=20)).reason == "unavailable"
    assert (await one.check("alice", "hint", cost=5)).reason is None


@pytest.mark.parametrize("lease", [0, -1, 1.5, "much", True])
def test_a_lease_is_an_amount_or_auto(lease: Lease) -> None:
    with pytest.raises(ConfigError, match="lease"):
        Policy("hint", "5/day", lease=lease)


@pytest.mark.parametrize("algorithm", ["sliding_window", "gcra"])
def test_leases_are_for_fixed_windows(algorithm: str) -> None:
    with pytest.raises(ConfigError, match="lease: needs algorithm = 'fixed_window'"):
        Policy("hint", "5/day", algorithm=algorithm, lease=5)  # type: ignore[arg-type]
