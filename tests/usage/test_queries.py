"""A user's events, newest first and page by page: none twice, none left out, in few round trips."""

from __future__ import annotations

import asyncio
import json
import random
from base64 import urlsafe_b64decode, urlsafe_b64encode
from contextlib import suppress
from datetime import date, datetime
from typing import Any

import pytest

from ratelimit import InvalidInput, InvalidUser, MemoryStore, UsageLog
from ratelimit.errors import InvalidCursor, OutOfRetention
from ratelimit.store import TableStore
from ratelimit.testing import FakeClock
from ratelimit.usage import EventPage
from tests.usage.noon import at_noon, days_ago


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
