"""The verbs of `Limiter`: what they answer, what they refuse to take, and what they leave behind."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from ratelimit import open_store
from ratelimit.algorithms.fields import DAYS_KEPT
from ratelimit.errors import (
    ConfigError,
    InvalidAction,
    InvalidCost,
    InvalidInput,
    InvalidQuota,
    InvalidUser,
    UnknownAction,
)
from ratelimit.limiter import Limiter
from ratelimit.policy import AlgorithmName, Policy
from ratelimit.quota import Quota
from ratelimit.store import MemoryStore
from ratelimit.testing import FakeClock
from ratelimit.usage import UsageLog
from tests.limiter.histories import ALGORITHMS


def limiter(*policies: Policy, clock: FakeClock | None = None) -> Limiter:
    return Limiter(MemoryStore(), policies or [Policy("hint", "5/day")], clock=clock or FakeClock())


async def spend(one: Limiter, times: int, user: str = "alice", action: str = "hint") -> list[bool]:
    return [(await one.check(user, action)).allowed for _ in range(times)]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_admits_the_limit_and_not_one_more(algorithm: AlgorithmName) -> None:
    one = limiter(Policy("hint", "5/day", algorithm=algorithm))
    assert await spend(one, 7) == [True] * 5 + [False] * 2
    assert await spend(one, 1, user="bob") == [True]


async def test_a_decision_tells_how_things_stand() -> None:
    clock = FakeClock(datetime(2026, 11, 21, 18, tzinfo=UTC))
    one = limiter(clock=clock)
    first = await one.check("alice", "hint", cost=2)
    assert (first.allowed, first.limit, first.used, first.remaining) == (True, 5, 2, 3)
    assert (first.reset_after, first.retry_after, first.reason) == (6 * 3600, 0, None)
    assert first.quotas[0].quota == Quota(5, "day")
    refused = await one.check("alice", "hint", cost=4)
    assert (refused.allowed, refused.used, refused.remaining) == (False, 2, 3)
    assert (refused.retry_after, refused.reason, refused.policy) == (6 * 3600, "quota", "hint")


async def test_several_windows_are_one_decision() -> None:
    clock = FakeClock()
    one = limiter(Policy("hint", "2/second; 3/day"), clock=clock)
    assert await spend(one, 3) == [True, True, False]
    clock.advance(1)
    assert await spend(one, 2) == [True, False]  # what the second refused was not spent from the day
    state = await one.peek("alice", "hint")
    assert [(each.used, each.remaining) for each in state.quotas] == [(1, 1), (3, 0)]
    assert state.limit == 3  # the tightest


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_cost_that_can_never_pass_is_refused_at_once(algorithm: AlgorithmName) -> None:
    one = limiter(Policy("hint", "5/day", algorithm=algorithm))
    refused = await one.check("alice", "hint", cost=6)
    assert (refused.allowed, refused.retry_after, refused.reason, refused.limit) == (False, None, "too_large", 5)
    assert await one.totals("alice") == {"hint": {}}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_quota_of_zero_refuses_everything(algorithm: AlgorithmName) -> None:
    refused = await limiter(Policy("hint", "0/day", algorithm=algorithm)).check("alice", "hint")
    assert (refused.allowed, refused.retry_after) == (False, None)


async def test_unlimited_admits_everything_and_still_counts() -> None:
    one = limiter(Policy("hint", "unlimited"))
    decision = await one.check("alice", "hint", cost=1000)
    assert (decision.allowed, decision.limit, decision.remaining, decision.used) == (True, None, None, 0)
    assert await one.totals("alice") == {"hint": {date(2026, 1, 5): 1000}}


@pytest.mark.parametrize("cost", [0, -1, 1.5, 1.0, True, "1", [], 10**13])
@pytest.mark.parametrize("verb", ["check", "peek", "charge", "refund"])
async def test_a_cost_that_is_no_amount_is_an_error(verb: str, cost: Any) -> None:
    one = limiter()
    with pytest.raises(InvalidCost):
        await getattr(one, verb)("alice", "hint", cost=cost)
    assert len(one.store) == 0  # type: ignore[arg-type]


async def test_bad_users_and_actions_are_errors() -> None:
    one = limiter()
    with pytest.raises(InvalidUser):
        await one.check("", "hint")
    with pytest.raises(InvalidAction):
        await one.check("alice", "", quotas="5/day")
    with pytest.raises(UnknownAction, match=r"no policy is named 'dance' \(there are: hint\)"):
        await one.check("alice", "dance")
    with pytest.raises(UnknownAction):
        await one.check("alice", "dance", algorithm="gcra")
    with pytest.raises(InvalidQuota):
        await one.check("alice", "dance", quotas="5/fortnight")


async def test_quotas_may_come_with_the_call() -> None:
    one = Limiter(MemoryStore(), clock=FakeClock())
    assert [(await one.check("alice", "dance", quotas="2/day")).allowed for _ in range(3)] == [True, True, False]
    assert (await one.check("alice", "dance", quotas=["3/day"])).allowed  # the same counter, a higher limit
    assert (await one.check("alice", "dance", quotas=-1)).limit is None


async def test_quotas_of_a_call_keep_the_rest_of_the_policy() -> None:
    one = limiter(Policy("hint", "1/day", mode="shadow"))
    assert [(await one.check("alice", "hint", quotas="2/day")).shadow_denied for _ in range(3)] == [False, False, True]


async def test_shadow_decides_but_never_blocks() -> None:
    one = limiter(Policy("hint", "1/day", mode="shadow"))
    await one.check("alice", "hint")
    decision = await one.check("alice", "hint")
    assert (decision.allowed, decision.shadow_denied, decision.retry_after, decision.reason) == (True, True, 0, "quota")
    assert decision.used == 1


async def test_peek_spends_nothing() -> None:
    one = limiter()
    for _ in range(3):
        assert (await one.peek("alice", "hint", cost=5)).allowed
    assert not (await one.peek("alice", "hint", cost=6)).allowed


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_charge_is_never_refused_and_may_go_over(algorithm: AlgorithmName) -> None:
    one = limiter(Policy("hint", "5/day", algorithm=algorithm))
    await one.charge("alice", "hint", 3)
    over = await one.charge("alice", "hint", 4)
    assert (over.allowed, over.used, over.remaining) == (True, 7, 0)
    assert not (await one.check("alice", "hint")).allowed
    assert await one.totals("alice") == {"hint": {date(2026, 1, 5): 7}}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_refund_gives_back_from_quota_and_totals(algorithm: AlgorithmName) -> None:
    one = limiter(Policy("hint", "5/day", algorithm=algorithm))
    await one.check("alice", "hint", cost=5)
    await one.refund("alice", "hint", 2)
    assert (await one.peek("alice", "hint")).remaining == 2
    assert await one.totals("alice") == {"hint": {date(2026, 1, 5): 3}}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_refund_never_gives_more_than_was_spent(algorithm: AlgorithmName) -> None:
    one = limiter(Policy("hint", "5/day", algorithm=algorithm))
    await one.check("alice", "hint", cost=2)
    await one.refund("alice", "hint", 99)
    await one.refund("bob", "hint", 99)
    assert await spend(one, 6) == [True] * 5 + [False]
    assert await spend(one, 6, user="bob") == [True] * 5 + [False]


@pytest.mark.parametrize("algorithm", ["fixed_window", "sliding_window"])
async def test_a_refund_goes_to_the_window_it_was_spent_in(algorithm: AlgorithmName) -> None:
    clock = FakeClock()
    one = limiter(Policy("hint", "5/day", algorithm=algorithm), clock=clock)
    spent = await one.check("alice", "hint", cost=3)
    clock.advance(86_400)
    await one.check("alice", "hint", cost=2)
    await one.refund("alice", "hint", 3, at=spent.at)
    assert (await one.peek("alice", "hint")).used == 2
    assert await one.totals("alice") == {"hint": {date(2026, 1, 5): 0, date(2026, 1, 6): 2}}


async def test_a_refund_by_another_process_is_not_lost() -> None:
    store, clock, policy = MemoryStore(), FakeClock(), Policy("hint", "5/day")
    one, other = (Limiter(store, [policy], clock=clock) for _ in range(2))
    await other.check("alice", "hint")
    await one.check("alice", "hint", cost=4)
    await other.refund("alice", "hint", 4)
    assert (await one.check("alice", "hint", cost=4)).allowed


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_reset_forgets_the_quotas_and_keeps_the_totals(algorithm: AlgorithmName) -> None:
    one = limiter(Policy("hint", "5/day; 9/hour", algorithm=algorithm))
    await spend(one, 5)
    await one.reset("alice", "hint")
    await one.reset("nobody", "hint")
    assert await spend(one, 6) == [True] * 5 + [False]
    assert await one.totals("alice") == {"hint": {date(2026, 1, 5): 10}}


async def test_totals_are_by_action_and_day() -> None:
    clock = FakeClock()
    one = limiter(Policy("hint", "5/day"), Policy("run", "5/day"), clock=clock)
    await spend(one, 2)
    clock.advance(86_400)
    await spend(one, 1)
    await spend(one, 3, action="run")
    first, second = date(2026, 1, 5), date(2026, 1, 6)
    assert await one.totals("alice") == {"hint": {first: 2, second: 1}, "run": {second: 3}}
    assert await one.totals("alice", since=second, actions=["hint"]) == {"hint": {second: 1}}
    assert await one.totals("alice", until=first, actions=["hint"]) == {"hint": {first: 2}}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"since": date(2025, 1, 1)}, "is out of reach: totals are kept for 35 days, from 2025-12-02 on"),
        ({"since": date(2024, 1, 1), "per": "month"}, "is out of reach: totals are kept for 13 months"),
        ({"since": date(2026, 1, 7), "until": date(2026, 1, 8)}, "has not come yet: today is 2026-01-05 in UTC"),
        ({"since": date(2026, 1, 4), "until": date(2026, 1, 3)}, "must not be later than until"),
        ({"since": "2026-01-05"}, "since must be a date, not '2026-01-05'"),
        ({"per": "week"}, "per must be one of 'day', 'month', not 'week'"),
    ],
)
async def test_totals_that_are_not_kept_are_an_error(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        await limiter().totals("alice", **asked)


async def test_totals_by_month() -> None:
    clock = FakeClock(datetime(2026, 1, 31, 12, tzinfo=UTC))
    one = limiter(clock=clock)
    await spend(one, 2)
    clock.advance(86_400)
    await spend(one, 6)
    january, february = date(2026, 1, 1), date(2026, 2, 1)
    assert await one.totals("alice", per="month") == {"hint": {january: 2, february: 5}}
    assert await one.totals("alice", per="month", since=date(2026, 2, 14)) == {"hint": {february: 5}}


async def test_totals_of_35_days_and_13_months_are_kept() -> None:
    clock = FakeClock()
    one = limiter(clock=clock)
    for _ in range(500):
        await one.check("alice", "hint")
        clock.advance(86_400)
    record = await one.store.read(("alice", "hint"))  # type: ignore[arg-type]
    days = (await one.totals("alice"))["hint"]
    assert len(days) == 34  # today is the 35th, and has none yet
    assert sum(1 for field in record if field.startswith("u") and len(field) == 5) in (13, 14)
    assert len(record) <= 36 + 14 + 3


async def test_a_bucket_that_a_clock_ahead_has_written_refuses_until_then_or_a_reset() -> None:
    """It cannot be told from a debt, and no debt is forgiven."""
    store, ahead, right = MemoryStore(), FakeClock(), FakeClock()
    ahead.advance(240)
    policy = Policy("hint", "10/second", algorithm="gcra")
    fast, one = Limiter(store, [policy], clock=ahead), Limiter(store, [policy], clock=right)
    for user in ("alice", "bob"):
        await fast.check(user, "hint")
    refused = await one.check("alice", "hint")
    wait = 239.2  # the bucket is a second deep, and two units of 0.1 s are in it
    assert (refused.allowed, refused.retry_after) == (False, wait)
    right.advance(wait)
    assert (await one.check("alice", "hint")).allowed
    right.advance(-wait)
    await one.reset("bob", "hint")
    assert (await one.check("bob", "hint")).allowed


async def test_clock_that_steps_back_does_not_admit_more() -> None:
    clock = FakeClock()
    one = limiter(Policy("hint", "5/minute"), clock=clock)
    assert all(await spend(one, 5))
    for step in (60, -60, -30, 30, 45, -45):
        clock.advance(step)
        decision = await one.check("alice", "hint")
        spent = await one.store.read(("alice", "hint"))  # type: ignore[arg-type]
        assert all(value <= 5 for field, value in spent.items() if field.startswith("m")), decision


@pytest.mark.parametrize("policies", [[Policy("hint", "5/day")] * 2, ["5/day"]])
def test_policies_must_be_policies_with_names_of_their_own(policies: Any) -> None:
    with pytest.raises(ConfigError, match=r"policies\[\d\]"):
        Limiter(MemoryStore(), policies)


@pytest.mark.parametrize("deadline", [0, -1, 61, float("nan")])
def test_deadline_is_bounded(deadline: float) -> None:
    with pytest.raises(ConfigError, match="deadline"):
        Limiter(MemoryStore(), deadline=deadline)


async def test_days_between_checks_leave_nothing_behind() -> None:
    """A user who comes once a day through a process that never saw them before must not grow the record for ever."""
    store, clock = MemoryStore(), FakeClock()
    for _ in range(200):
        one = Limiter(store, [Policy("hint", "5/second; 9/minute")], clock=clock)
        await one.check("alice", "hint")
        clock.advance(timedelta(hours=1).total_seconds())
    assert len(await store.read(("alice", "hint"))) < 30  # type: ignore[arg-type]


@pytest.mark.parametrize("store", ["memory://", "dynamodb://limits?region=eu-west-1", None, object()])
def test_what_is_no_store_is_told_how_to_open_one(store: Any) -> None:
    with pytest.raises(ConfigError, match=r"store: expected a store, not .*open_store\('"):
        Limiter(store)


async def test_a_store_that_nobody_waited_for() -> None:
    with pytest.raises(ConfigError, match="await it"):
        Limiter(open_store("memory://"))  # type: ignore[arg-type]


@pytest.mark.parametrize("per", ["week", "", None, "days", DAYS_KEPT])
async def test_totals_are_per_day_or_per_month(per: Any) -> None:
    one = Limiter(MemoryStore(), [Policy("hint", "100/day")])
    await one.check("alice", "hint")
    for totals in (one.totals, UsageLog(MemoryStore(), actions=["hint"]).totals):
        with pytest.raises(InvalidInput, match="per must be one of 'day', 'month'"):
            await totals("alice", per=per)
