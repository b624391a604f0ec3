"""A refund is tied to what it refunds: never more than a decision took, once, and nothing where it took nothing."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest

from ratelimit.decision import Decision
from ratelimit.errors import InvalidCost, InvalidInput, QuotaExceeded, StoreThrottled, StoreUnavailable
from ratelimit.limiter import Limiter
from ratelimit.policy import AlgorithmName, OnUnavailable, Policy
from ratelimit.store import MemoryStore, Store
from ratelimit.testing import FakeClock
from tests.limiter.histories import ALGORITHMS
from tests.limiter.stores import CountingStore, FailingStore, failing

DOWN = failing(StoreUnavailable("down"))


def limiter(policy: Policy, store: Store | None = None, **options: Any) -> Limiter:
    return Limiter(store or MemoryStore(), [policy], **{"clock": FakeClock(), **options})


async def spend(one: Limiter, times: int) -> list[Decision]:
    return [await one.check("alice", "hint") for _ in range(times)]


async def used(one: Limiter) -> int:
    return (await one.peek("alice", "hint")).used


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_refund_gives_back_what_the_decision_took(algorithm: AlgorithmName) -> None:
    one = limiter(Policy("hint", "10/day; 30/month", algorithm=algorithm))
    decision = await one.check("alice", "hint", cost=4)
    await one.check("alice", "hint", cost=3)
    await one.refund(decision)
    assert [state.used for state in (await one.peek("alice", "hint")).quotas] == [3, 3]
    assert await one.totals("alice") == {"hint": {date(2026, 1, 5): 3}}


@pytest.mark.parametrize("on_unavailable", ["allow", "deny", "local"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_what_was_decided_without_the_store_takes_nothing_from_it(
    algorithm: AlgorithmName, on_unavailable: OnUnavailable
) -> None:
    store = FailingStore()
    one = limiter(Policy("hint", "10/day", algorithm=algorithm, on_unavailable=on_unavailable), store)
    await spend(one, 10)
    store.fault = DOWN
    unasked = await spend(one, 4)
    store.fault = None
    for decision in unasked:
        await one.refund(decision)
    assert await used(one) == 10
    assert not any(await spend(one, 4))


async def test_what_this_process_counted_by_itself_comes_back_to_that() -> None:
    store = FailingStore()
    store.fault = DOWN
    one = limiter(Policy("hint", "3/day"), store)
    first, *_ = await spend(one, 3)
    assert (first.reason, (await one.check("alice", "hint")).allowed) == ("unavailable", False)
    await one.refund(first)
    await one.refund(first)
    assert [bool(decision) for decision in await spend(one, 2)] == [True, False]
    await one.refund(await one.peek("alice", "hint"))
    assert not await one.check("alice", "hint")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_refused_in_shadow_peeked_and_too_large_took_nothing(algorithm: AlgorithmName) -> None:
    one = limiter(Policy("hint", "5/day", mode="shadow", algorithm=algorithm))
    await one.check("alice", "hint", cost=5)
    for decision in (
        await one.check("alice", "hint"),
        await one.check("alice", "hint", cost=6),
        await one.peek("alice", "hint"),
        await one.peek("bob", "hint"),
    ):
        assert (decision.allowed, decision.spent) == (True, 0)
        await one.refund(decision)
    assert await used(one) == 5
    enforced = limiter(Policy("hint", "5/day", algorithm=algorithm), one.store)
    refused = await enforced.check("alice", "hint")
    await enforced.refund(refused)
    assert (bool(refused), await used(enforced)) == (False, 5)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_twice_gives_back_once(algorithm: AlgorithmName) -> None:
    one = limiter(Policy("hint", "10/day", algorithm=algorithm))
    decision, *_ = await spend(one, 3)
    await asyncio.gather(*(one.refund(decision) for _ in range(5)))
    assert (await used(one), decision.refunded) == (2, 1)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_in_parts_never_more_than_the_whole(algorithm: AlgorithmName) -> None:
    one = limiter(Policy("hint", "20/day", algorithm=algorithm))
    decision = await one.check("alice", "hint", cost=10)
    await one.check("alice", "hint", cost=10)
    for cost in (3, 4, 5, 1):
        await one.refund(decision, cost=cost)
    assert (await used(one), decision.refunded) == (10, 10)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_charge_is_given_back_like_a_check(algorithm: AlgorithmName) -> None:
    one = limiter(Policy("hint", "5/day", algorithm=algorithm))
    await spend(one, 5)
    owed = await one.charge("alice", "hint", 7)
    await one.refund(owed)
    assert (await used(one), owed.spent) == (5, 7)


@pytest.mark.parametrize("algorithm", ["fixed_window", "sliding_window"])
async def test_it_goes_to_the_windows_of_its_moment(algorithm: AlgorithmName) -> None:
    clock = FakeClock()
    one = limiter(Policy("hint", "5/day", algorithm=algorithm), clock=clock)
    decision = await one.check("alice", "hint", cost=3)
    clock.advance(86_400)
    await one.check("alice", "hint", cost=2)
    await one.refund(decision)
    assert await used(one) == 2
    assert await one.totals("alice") == {"hint": {date(2026, 1, 5): 0, date(2026, 1, 6): 2}}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_it_goes_where_it_was_taken_whatever_holds_by_now(algorithm: AlgorithmName) -> None:
    one = limiter(Policy("hint", "5/day"))
    own = await one.check("alice", "hint", cost=2, quotas="10/hour; 20/day", algorithm=algorithm)
    await one.refund(own)
    peeked = await one.peek("alice", "hint", quotas="10/hour; 20/day", algorithm=algorithm)
    assert [state.used for state in peeked.quotas] == [0, 0]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_what_a_reset_has_forgotten_is_not_given_back_out_of_what_others_take(algorithm: AlgorithmName) -> None:
    store, clock = CountingStore(), FakeClock()
    # Who refunds, who resets, and who takes meanwhile: three processes.
    first, second, third = (
        limiter(Policy("hint", "10/day; 30/month", algorithm=algorithm), store, clock=clock) for _ in range(3)
    )
    early = await first.check("alice", "hint", cost=5)
    clock.advance(0.001)
    await second.reset("alice", "hint")
    clock.advance(0.001)
    late = await third.check("alice", "hint", cost=3)
    await first.refund(early)
    # The day's sum is no quota: it says what was used, and five units were not.
    assert await first.totals("alice") == {"hint": {date(2026, 1, 5): 3}}
    await first.refund("alice", "hint", 5, at=early.at)
    assert [state.used for state in (await third.peek("alice", "hint")).quotas] == [3, 3]
    await second.refund(late)
    assert await used(first) == 0


async def test_of_those_that_were_written_together_each_is_given_back_by_itself() -> None:
    store = CountingStore()
    gate = asyncio.Event()
    plain = store.memory.apply

    async def slow(*args: Any, **options: Any) -> Any:
        await gate.wait()
        return await plain(*args, **options)

    store.memory.apply = slow  # type: ignore[method-assign]
    one = limiter(Policy("hint", "10/day"), store)
    waiting = [asyncio.ensure_future(one.check("alice", "hint")) for _ in range(6)]
    await asyncio.sleep(0)
    gate.set()
    decisions: Sequence[Decision] = await asyncio.gather(*waiting)
    assert one.stats.coalesced == 5
    await one.refund(decisions[3])
    await one.refund(decisions[4])
    assert [decision.refunded for decision in decisions] == [0, 0, 0, 1, 1, 0]
    assert await used(one) == 4


async def test_units_of_a_lease_come_back_too() -> None:
    store = CountingStore()
    one = limiter(Policy("hint", "100/day", lease=10), store)
    decisions = await spend(one, 5)
    await one.refund(decisions[-1])
    await one.close()
    assert sum((await store.used_today()).values()) == 4


async def test_after_an_outage_a_refund_may_be_lost_but_never_happens_twice() -> None:
    store = FailingStore()
    one = limiter(Policy("hint", "10/day"), store)
    first, second = await spend(one, 2)
    for error, left in ((StoreUnavailable("no answer"), 1), (StoreThrottled("not now"), 0)):
        store.fault = failing(error)
        with pytest.raises(type(error)):
            await one.refund(first if left else second)
        store.fault = None
        await one.refund(first if left else second)
    assert (await used(one), first.refunded, second.refunded) == (1, 1, 1)


async def test_where_there_is_no_limit_the_totals_get_it_back() -> None:
    one = limiter(Policy("hint", "unlimited"), CountingStore())
    decision = await one.check("alice", "hint", cost=3)
    await one.refund(decision)
    assert await one.totals("alice") == {"hint": {date(2026, 1, 5): 0}}


async def test_a_refund_ends_what_the_denial_cache_remembers() -> None:
    one = limiter(Policy("hint", "3/day"), CountingStore(), denial_cache=60)
    decision, *_ = await spend(one, 3)
    assert not await one.check("alice", "hint")
    await one.refund(decision)
    assert await one.check("alice", "hint")


@pytest.mark.parametrize("at", [0, 1_767_614_400_000, 1.5, "2026-01-05", datetime(2026, 1, 5), date(2026, 1, 5)])
async def test_a_moment_is_an_aware_datetime(at: Any) -> None:
    one = limiter(Policy("hint", "5/day"))
    with pytest.raises(InvalidInput, match="at must be an aware datetime"):
        await one.refund("alice", "hint", 3, at=at)


async def test_a_moment_may_be_told_in_any_zone() -> None:
    one = limiter(Policy("hint", "5/day"))
    decision = await one.check("alice", "hint", cost=3)
    assert decision.at == datetime(2026, 1, 5, 12, tzinfo=UTC)
    await one.refund("alice", "hint", 2, at=decision.at.astimezone(timezone(timedelta(hours=13))))
    assert await used(one) == 1


@pytest.mark.parametrize("more", [{"at": datetime(2026, 1, 5, tzinfo=UTC)}, {"quotas": "5/day"}, {"action": "hint"}])
async def test_a_decision_says_everything_itself(more: dict[str, Any]) -> None:
    one = limiter(Policy("hint", "5/day"))
    decision = await one.check("alice", "hint")
    with pytest.raises(InvalidInput, match="says itself"):
        await one.refund(decision, **more)
    with pytest.raises(InvalidCost):
        await one.refund(decision, cost=0)
    assert await used(one) == 1


async def test_a_decision_is_true_where_it_allows_and_travels_with_its_error() -> None:
    one = limiter(Policy("hint", "1/day"))
    allowed, refused = await spend(one, 2)
    assert (bool(allowed), bool(refused)) == (True, False)
    again = pickle.loads(pickle.dumps(QuotaExceeded(refused)))
    assert (again.decision, str(again)) == (refused, "hint: quota exceeded; try again in 43200.000 s")
