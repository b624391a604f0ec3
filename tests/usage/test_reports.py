"""What can be asked of the log: events page by page, exact totals, and that both agree."""

from __future__ import annotations

import asyncio
import json
import random
from base64 import urlsafe_b64decode, urlsafe_b64encode
from contextlib import suppress
from datetime import date, datetime, timedelta, timezone
from typing import Any

import pytest

from ratelimit import Limiter, Policy
from ratelimit.errors import (
    ConfigError,
    InvalidAction,
    InvalidCursor,
    InvalidInput,
    InvalidUser,
    OutOfRetention,
    StoreUnavailable,
)
from ratelimit.store import MemoryStore, TableStore
from ratelimit.testing import FakeClock
from ratelimit.usage import EventPage, UsageLog
from tests.engines import Engine
from tests.usage.conftest import on_engine
from tests.usage.noon import TODAY, at_noon, days_ago
from tests.usage.stores import down, scripted


async def all_pages(usage: UsageLog, user: str, **query: Any) -> list[EventPage]:
    pages = [await usage.events(user, **query)]
    while pages[-1].cursor is not None:
        pages.append(await usage.events(user, cursor=pages[-1].cursor, **query))
    return pages


async def test_events_of_several_days_come_page_by_page_newest_first(store: TableStore, user: str) -> None:
    async with UsageLog(store, clock=at_noon()) as usage:
        ids = [await usage.record(user, "hint", at=days_ago(age)) for age in (20, 3, 2.9, 2.1, 2, 1, 0.5, 0.01, 0, 0)]
        await usage.flush()
        pages = await all_pages(usage, user, limit=3)
        assert [event.id for page in pages for event in page.events] == ids[::-1]
        assert [len(page.events) for page in pages] == [3, 3, 3, 1]
        pages = await all_pages(usage, user, since=days_ago(3), until=days_ago(1), limit=2)
        assert [event.id for page in pages for event in page.events] == ids[4:0:-1]
        assert [len(page.events) for page in pages] == [2, 2], "the last page knows that it is the last"


async def test_events_of_one_action_or_answer(store: TableStore, user: str) -> None:
    chance = random.Random(1)
    async with UsageLog(store, clock=at_noon()) as usage:
        for number in range(200):
            await usage.record(user, chance.choice(["hint", "solve"]), allowed=chance.random() < 0.5, cost=number)
        await usage.flush()
        everything = [event for page in await all_pages(usage, user, limit=70) for event in page.events]
        assert len(everything) == 200
        for query in ({"action": "hint"}, {"allowed": False}, {"action": "solve", "allowed": True}):
            found = [event for page in await all_pages(usage, user, limit=7, **query) for event in page.events]
            assert found == [
                event for event in everything if all(getattr(event, name) == value for name, value in query.items())
            ]


async def test_a_page_read_between_writes_misses_and_repeats_nothing(store: TableStore, user: str) -> None:
    clock = at_noon()
    async with UsageLog(store, clock=clock) as usage:
        ids = [await usage.record(user, "hint", at=days_ago(number / 86_400_000)) for number in range(10)]
        await usage.flush()
        page = await usage.events(user, limit=4)
        clock.advance(60)
        await usage.record(user, "hint")
        await usage.flush()
        rest = await usage.events(user, limit=100, cursor=page.cursor)
        assert [event.id for event in (*page.events, *rest.events)] == ids


async def test_a_cursor_belongs_to_its_query(user: str) -> None:
    usage = UsageLog(MemoryStore(), clock=at_noon())
    async with usage:
        for _ in range(5):
            await usage.record(user, "hint")
        await usage.flush()
    cursor = (await usage.events(user, action="hint", limit=2)).cursor
    assert cursor is not None
    asked: list[dict[str, Any]] = [{"user": "bob", "action": "hint"}, {"action": "solve"}, {}]
    others = [*asked, {"action": "hint", "allowed": True}]
    for other in others:
        with pytest.raises(InvalidCursor, match="another query"):
            await usage.events(**{"user": user, "cursor": cursor, **other})
    for damaged in ("", "x", cursor[:-7], "é", "WyJhIl0", 7):
        with pytest.raises(InvalidCursor, match="damaged"):
            await usage.events(user, action="hint", cursor=damaged)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "forged",
    [{"at": 10**13 - 1}, {"at": -1}, {"at": 10**30}, {"at": 0}, {"id": "x" * 3000}, {"action": "x" * 3000}, {"id": ""}],
)
async def test_a_forged_cursor_makes_no_more_reads_than_the_query_does(
    store: TableStore, user: str, forged: dict[str, Any]
) -> None:
    async with UsageLog(store, clock=at_noon()) as usage:
        for _ in range(3):
            await usage.record(user, "hint")
        await usage.flush()
    reads, page = 0, store.events.page

    async def counted(*args: Any, **options: Any) -> Any:
        nonlocal reads
        reads += 1
        return await page(*args, **options)

    store.events.page = counted  # type: ignore[method-assign]
    cursor = (await usage.events(user, limit=1)).cursor
    assert cursor is not None
    before = reads
    fields = json.loads(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    fields = {**dict(zip(("query", "at", "action", "id"), fields, strict=True)), **forged}
    with suppress(InvalidCursor):
        await usage.events(user, cursor=urlsafe_b64encode(json.dumps([*fields.values()]).encode()).decode())
    assert reads - before <= 92


async def test_a_filter_that_leaves_little_takes_several_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ratelimit.usage.queries.MAX_READ", 200)
    store = MemoryStore()
    async with UsageLog(store, clock=at_noon()) as usage:
        wanted = [await usage.record("alice", "solve", at=days_ago(age)) for age in (0.1, 20)]
        for age in range(0, 40):
            for _ in range(30):
                await usage.record("alice", "hint", at=days_ago(age))
        await usage.flush()
    pages = await all_pages(usage, "alice", action="solve", limit=2)
    assert [event.id for page in pages for event in page.events] == wanted
    assert len(pages) > 2
    (page,) = await all_pages(usage, "alice", action="solve", since=days_ago(3))
    assert [event.id for event in page.events] == wanted[:1]


@pytest.mark.parametrize(
    ("query", "error", "message"),
    [
        ({"since": datetime(2026, 1, 5)}, InvalidInput, "since must be an aware datetime"),
        ({"until": date(2026, 1, 5)}, InvalidInput, "until must be an aware datetime"),
        ({"since": days_ago(92)}, OutOfRetention, "kept for 90 days"),
        ({"until": days_ago(92)}, OutOfRetention, "kept for 90 days"),
        ({"since": days_ago(1), "until": days_ago(2)}, InvalidInput, "must not be later"),
        ({"limit": 0}, InvalidInput, "limit"),
        ({"limit": 1001}, InvalidInput, "limit"),
        ({"allowed": 1}, InvalidInput, "allowed"),
        ({"user": ""}, InvalidUser, "empty"),
    ],
)
async def test_bad_queries_are_refused(query: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        await UsageLog(MemoryStore(), clock=at_noon()).events(**{"user": "alice", **query})


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
    limiter = Limiter(store, [Policy("hint", "100/day"), Policy("solve", "100/day")], clock=clock, deadline=30)
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
    limiter = Limiter(store, [Policy("hint", "5/day"), Policy("solve", "100/day")], clock=clock, deadline=30)
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
    limiter = Limiter(store, [Policy("hint", "5/day")], clock=clock, deadline=30)
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
    limiter = Limiter(store, [Policy("hint", "5/day"), Policy("solve", "5/day")], clock=clock, deadline=30)
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


async def test_a_user_of_long_ago_is_found_in_a_few_round_trips() -> None:
    clock = FakeClock()
    store = MemoryStore()
    rounds: list[int] = []
    read = store.events.page

    async def page(*args: Any, **kwargs: Any) -> Any:
        rounds[-1] += 1
        await asyncio.sleep(0)
        return await read(*args, **kwargs)

    async with UsageLog(store, actions=["hint"], clock=clock) as usage:
        await usage.record("alice", "hint", id="first")
        await usage.flush()
        clock.advance(85 * 86_400)
        store.events.page = page  # type: ignore[method-assign]
        task = asyncio.create_task(usage.events("alice", limit=20))
        while not task.done():
            rounds.append(0)
            await asyncio.sleep(0)
        found = (await task).events
    assert [event.id for event in found] == ["first"]
    assert len([number for number in rounds if number]) <= 8, rounds
