"""What can be asked of the log: events page by page, exact totals, and that both agree."""

from __future__ import annotations

import asyncio
from datetime import date, datetime, timedelta, timezone
from typing import Any

import pytest

from ratelimit import ConfigError, InvalidAction, InvalidInput, Limiter, MemoryStore, Policy, StoreUnavailable, UsageLog
from ratelimit.errors import OutOfRetention
from ratelimit.store import TableStore
from tests.engines import Engine
from tests.usage.conftest import on_engine
from tests.usage.noon import TODAY, at_noon, days_ago
from tests.usage.stores import down, scripted


async def test_the_ends_of_the_calendar_are_times_like_others() -> None:
    usage = UsageLog(MemoryStore(), clock=at_noon())
    end = datetime(9999, 12, 31, 23, tzinfo=timezone(timedelta(hours=-5)))
    async with usage:
        await usage.record("alice", "hint")
        await usage.flush()
    assert len((await usage.events("alice", until=end)).events) == 1
    assert (await usage.events("alice", since=end)).events == ()
    assert await usage.totals("alice", until=date.max) == await usage.totals("alice") == {"hint": {}}
    nobodys = UsageLog(MemoryStore(), clock=at_noon())  # where the actions are looked for in the events
    assert await nobodys.totals("alice", until=date.max) == {}
    with pytest.raises(InvalidInput, match="years 1 to 9999"):
        await usage.totals("alice", until=end)


async def test_no_action_can_be_called_as_the_dates_of_a_summary() -> None:
    with pytest.raises(ConfigError, match="date_range"):
        Policy("date_range", "5/day")
    with pytest.raises(InvalidAction, match="date_range"):
        await UsageLog(MemoryStore(), clock=at_noon()).record("alice", "date_range")


async def test_any_time_zone_will_do() -> None:
    async with UsageLog(MemoryStore(), clock=at_noon()) as usage:
        await usage.record("alice", "hint")
        await usage.flush()
        since = days_ago(0).astimezone(timezone(timedelta(hours=-7)))
        assert len((await usage.events("alice", since=since)).events) == 1
        assert len((await usage.events("alice", until=since)).events) == 0


async def test_months_come_from_the_counters(store: TableStore, user: str) -> None:
    clock = at_noon()
    first = TODAY.replace(day=1)
    last_month = (first - timedelta(days=1)).replace(day=1)
    limiter = Limiter(store, [Policy("hint", "100/day"), Policy("solve", "100/day")], clock=clock)
    clock.advance(-86400 * TODAY.day)
    await limiter.check(user, "hint", cost=4)
    clock.advance(86400 * TODAY.day)
    await limiter.check(user, "hint", cost=3)
    await limiter.check(user, "solve", cost=2)
    usage = UsageLog(store, actions=limiter.policies, clock=clock)
    assert await usage.totals(user, per="month") == {"hint": {last_month: 4, first: 3}, "solve": {first: 2}}
    assert await usage.totals(user, per="month", actions=["solve"]) == {"solve": {first: 2}}
    assert await usage.totals(user, until=last_month, per="month") == {"hint": {last_month: 4}, "solve": {}}


async def test_totals_and_summary_come_from_the_counters(store: TableStore, user: str) -> None:
    clock = at_noon()
    clock.advance(-6 * 86400)
    limiter = Limiter(store, [Policy("hint", "5/day"), Policy("solve", "100/day")], clock=clock)
    usage = UsageLog(store, actions=limiter.policies, clock=clock)
    for _ in range(7):
        for _ in range(8):
            await limiter.check(user, "hint")
        clock.advance(86400)
    clock.advance(-86400)
    await limiter.check(user, "solve", cost=3)
    first = TODAY - timedelta(days=6)
    assert await usage.summary(user, days=7) == {
        "hint": {"total": 35, "daily_avg": 5.0},
        "solve": {"total": 3, "daily_avg": 0.43},
        "date_range": [first.isoformat(), TODAY.isoformat()],
    }
    assert await usage.totals(user, TODAY - timedelta(days=1), TODAY) == {
        "hint": {TODAY - timedelta(days=1): 5, TODAY: 5},
        "solve": {TODAY: 3},
    }
    assert await usage.totals(user, first, first) == {"hint": {first: 5}, "solve": {}}


async def test_a_summary_of_30_days_and_5_actions_is_5_reads(engine: Engine, user: str) -> None:
    async with on_engine(engine) as store:
        usage = UsageLog(store, actions=["a", "b", "c", "d", "e"], clock=at_noon())
        before = sum(store.stats.calls.values())
        await usage.summary(user, days=30)
        assert sum(store.stats.calls.values()) - before == 5


async def test_actions_are_those_seen_or_else_those_of_the_events(store: TableStore, user: str) -> None:
    clock = at_noon()
    limiter = Limiter(store, [Policy("hint", "5/day")], clock=clock)
    await limiter.check(user, "hint")
    async with UsageLog(store, clock=clock) as usage:
        await usage.record(user, "hint")
        assert (await usage.summary(user))["hint"]["total"] == 1
        await usage.flush()
    assert (await UsageLog(store, clock=clock).summary(user))["hint"]["total"] == 1


@pytest.mark.parametrize(
    ("days", "error"), [(0, InvalidInput), (1.5, InvalidInput), (36, OutOfRetention), (10**9, OutOfRetention)]
)
async def test_a_summary_beyond_what_is_kept_is_refused(days: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        await UsageLog(MemoryStore(), clock=at_noon()).summary("alice", days=days)


async def test_days_that_are_not_kept_are_refused() -> None:
    usage = UsageLog(MemoryStore(), clock=at_noon())
    with pytest.raises(OutOfRetention, match="kept for 35 days"):
        await usage.totals("alice", TODAY - timedelta(days=35))
    oldest = TODAY.replace(year=TODAY.year - 1, day=1)
    with pytest.raises(OutOfRetention, match=f"kept for 13 months, from {oldest} on"):
        await usage.totals("alice", oldest - timedelta(days=1), per="month")
    assert await usage.totals("alice", oldest, per="month") == {}
    with pytest.raises(OutOfRetention, match="not come yet"):
        await usage.reconcile("alice", TODAY + timedelta(days=1))
    with pytest.raises(InvalidInput, match="later"):
        await usage.totals("alice", TODAY, TODAY - timedelta(days=1))
    with pytest.raises(InvalidInput, match="date"):
        await usage.totals("alice", "2026-01-05")  # type: ignore[arg-type]


async def test_reconcile_shows_what_was_counted_and_not_logged(store: TableStore, user: str) -> None:
    clock = at_noon()
    limiter = Limiter(store, [Policy("hint", "5/day"), Policy("solve", "5/day")], clock=clock)
    async with UsageLog(store, actions=limiter.policies, clock=clock, flush_interval=60) as usage:
        for _ in range(8):
            decision = await limiter.check(user, "hint")
            usage._accept(user, "hint", allowed=decision.allowed, at_us=decision.at_us)
        await limiter.check(user, "solve", cost=2)
        usage._accept(user, "other", cost=4)
        found = await usage.reconcile(user, TODAY)
    assert {action: (one.events, one.total, one.difference) for action, one in found.items()} == {
        "hint": (5, 5, 0),
        "solve": (0, 2, 2),
        "other": (4, 0, -4),
    }


@pytest.mark.parametrize("asked", ["erase", "reconcile"])
async def test_a_table_that_takes_no_events_is_an_error_and_no_endless_wait(
    asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ratelimit.usage.reports._FLUSH_TIMEOUT_S", 0.05)
    store, events = scripted()
    events.always = down
    async with UsageLog(store, clock=at_noon(), grace=0) as usage:
        await usage.record("alice", "hint")
        async with asyncio.timeout(30):
            with pytest.raises(StoreUnavailable, match="could not be written"):
                await (usage.erase("bob") if asked == "erase" else usage.reconcile("bob", TODAY))
