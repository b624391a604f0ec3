"""A scan finds everything there is, once, page by page and part by part; and what that costs."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from ratelimit import InvalidInput, Limiter, MemoryStore, Policy, StoreMisconfigured, StoreThrottled, UsageLog
from ratelimit.algorithms.fields import day_field, utc_day
from ratelimit.clock import SECOND, SystemClock
from ratelimit.dynamodb import AnswerLost, DynamoDBStore, Settings, create_table
from ratelimit.dynamodb.scans import sweep_table
from ratelimit.errors import InvalidCursor, OutOfRetention
from ratelimit.names import Key
from ratelimit.store import Add, Part, TableStore, Write
from ratelimit.store.base import each_part_page, first_cursors
from ratelimit.testing import FakeClock
from ratelimit.usage.reports import Reports
from tests.cli.command import Command
from tests.cli.command import ratelimit as ratelimit
from tests.engines import Engine
from tests.faults import FaultServer, garbage, throttled
from tests.faults.behaviours import Exchange
from tests.usage.files import NOON, event, fill, many

ALL: Any = {"since": 0, "until": 10**13}
TODAY = utc_day(NOON)


@pytest.fixture(params=["memory", "dynamodb"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[TableStore]:
    """A table of its own: a scan sees all there is."""
    if request.param == "memory":
        yield MemoryStore()
        return
    async with fresh(request.getfixturevalue("engine")) as store:
        yield store


def fresh(engine: Engine) -> DynamoDBStore:
    name = f"scans-{uuid4().hex[:8]}"
    return DynamoDBStore(table=name, endpoint=engine.endpoint, create=True, consumed=True)


async def events_of(store: TableStore, *, parts: int = 1, **query: int) -> list[str]:
    async def ask(part: Part, cursor: str | None) -> Any:
        return await store.scans.events(**{**ALL, **query}, cursor=cursor, part=part)

    async with aclosing(each_part_page(ask, first_cursors(parts), of=parts)) as pages:
        return [one.id async for _, page in pages for one in page.entries]


async def spend(store: TableStore, **units: int) -> None:
    limiter = Limiter(store, [Policy("hint", "1000/day"), Policy("solve", "1000/day")], clock=clock())
    for user, cost in units.items():
        await limiter.check(user, "hint", cost=cost)


def clock() -> FakeClock:
    return FakeClock(NOON / 1_000_000)


@pytest.mark.parametrize("parts", [1, 4])
async def test_every_event_once(store: TableStore, parts: int) -> None:
    made = many(2300, users=31)
    await fill(store.events, made)
    await store.events.put([odd := event("a#b%23", id="order#17")])
    await spend(store, alice=1)
    assert Counter(await events_of(store, parts=parts)) == Counter([*(one.id for one in made), odd.id])


async def test_only_the_range(store: TableStore) -> None:
    at = NOON // 1000
    made = [event(at_ms=at + ms) for ms in (-1, 0, 1, 999, 1000)]
    await fill(store.events, made)
    assert sorted(await events_of(store, since=at, until=at + 1000)) == sorted(one.id for one in made[1:4])


async def test_it_goes_on_from_a_cursor(store: TableStore) -> None:
    made = many(1500)
    await fill(store.events, made)
    first = await store.scans.events(**ALL)
    assert first.cursor is not None
    second = await store.scans.events(**ALL, cursor=first.cursor)
    assert second.cursor is None or not (await store.scans.events(**ALL, cursor=second.cursor)).entries
    assert sorted(one.id for one in (*first.entries, *second.entries)) == sorted(one.id for one in made)


async def test_the_event_comes_back_as_it_was(store: TableStore) -> None:
    one = event("ä#1", "a/b#c", status=429, duration=1.5, metadata={"k": [1]}, id="order#17")
    await store.events.put([one])
    assert (await store.scans.events(**ALL)).entries == (one,)


async def test_records(store: TableStore) -> None:
    await spend(store, alice=3, bob=1)
    await store.events.put([event()])
    page = await store.scans.records()
    records = {key.user: record for key, record in page.entries}
    assert set(records) == {"alice", "bob"}
    field = day_field(TODAY)
    assert (records["alice"][field], len(records["alice"])) == (3, 3)
    only = await store.scans.records(field=field)
    assert {key.user: record for key, record in only.entries} == {"alice": {field: 3}, "bob": {field: 1}}
    assert (await store.scans.records(field=day_field(TODAY - timedelta(days=1)))).entries == ()


async def test_top(store: TableStore) -> None:
    await spend(store, alice=3, bob=7, carol=3, dave=1, eve=2)
    limiter = Limiter(store, [Policy("solve", "1000/day")], clock=clock())
    await limiter.check("zoe", "solve", cost=99)
    usage = UsageLog(store, clock=clock())
    assert await usage.top(TODAY, "hint", count=3) == [("bob", 7), ("alice", 3), ("carol", 3)]
    assert await usage.top(TODAY, "hint", parts=3) == [
        ("bob", 7), ("alice", 3), ("carol", 3), ("eve", 2), ("dave", 1),
    ]  # fmt: skip
    assert await usage.top(TODAY, "solve") == [("zoe", 99)]
    assert await usage.top(TODAY - timedelta(days=1), "hint") == []
    assert await usage.top(TODAY, "unknown") == []


async def test_top_of_what_cannot_be_asked() -> None:
    usage = UsageLog(MemoryStore(), clock=clock())
    for day in (TODAY - timedelta(days=35), TODAY + timedelta(days=1)):
        with pytest.raises(OutOfRetention):
            await usage.top(day, "hint")
    for bad in ({"count": 0}, {"count": 1001}, {"parts": 0}, {"parts": 65}):
        with pytest.raises(InvalidInput, match="must be a whole number"):
            await usage.top(TODAY, "hint", **bad)


@pytest.mark.parametrize("cursor", ["", "x", "[1]", '["a"]', '["a","b","c"]', "{}"])
async def test_a_damaged_cursor(store: TableStore, cursor: str) -> None:
    for ask in (store.scans.events(**ALL, cursor=cursor), store.scans.records(cursor=cursor)):
        with pytest.raises(InvalidCursor):
            await ask


async def test_what_goes_while_it_is_read_hides_nothing_else(store: TableStore) -> None:
    made = many(1500)
    await fill(store.events, made)
    page = await store.scans.events(**ALL)
    for one in {one.user for one in page.entries}:
        if one != made[-1].user:
            await store.events.erase(one, TODAY)
    seen = {one.id for one in page.entries}
    while page.cursor is not None:
        page = await store.scans.events(**ALL, cursor=page.cursor)
        seen |= {one.id for one in page.entries}
    assert {one.id for one in made if one.user == made[-1].user} <= seen


async def test_other_items_are_passed_over_and_damaged_ones_named(engine: Engine) -> None:
    async with fresh(engine) as store:
        await store.events.put([event()])
        earlier = {"PK": {"S": "USR#7#ULOG#20260105"}, "SK": {"S": "ULOG#1767614400#hint"}, "tp": {"S": "ulog"}}
        put: dict[str, Any] = {"TableName": store.settings.table, "Item": {**earlier, "crt": {"N": "1767614400"}}}
        engine.call("PutItem", put)
        assert len((await store.scans.events(**ALL)).entries) == 1
        put["Item"]["SK"] = {"S": "ULOG#1767614400000#hint#id"}
        engine.call("PutItem", put)
        with pytest.raises(StoreMisconfigured, match="cannot be read, under 'USR#7#ULOG#20260105'"):
            await store.scans.events(**ALL)


async def test_what_a_page_costs(engine: Engine) -> None:
    async with fresh(engine) as store:
        await fill(store.events, many(1001))
        before = store.stats.read_units
        await events_of(store)
        assert store.stats.calls["Scan"] == 2
        assert 0 < store.stats.read_units - before < 1001


async def test_throttles_and_lost_answers_are_retried(pauses: list[float]) -> None:
    async with FaultServer() as server:
        async with DynamoDBStore(table="limits", endpoint=server.endpoint) as store:
            server.always(throttled())
            with pytest.raises(StoreThrottled):
                await store.scans.events(**ALL)
            assert (server.received["Scan"], len(pauses)) == (3, 2)
            server.always(garbage())
            with pytest.raises(AnswerLost):
                await store.scans.records()


async def test_a_page_that_takes_longer_than_a_check_may_is_waited_for() -> None:
    """Given up, it would be asked for again, behind the first request: more parts would end in no answer at all."""

    async def one_by_one(exchange: Exchange) -> bool:
        async with busy:
            await asyncio.sleep(0.4)
            await exchange.send(200, b'{"Items": [], "Count": 0, "ScannedCount": 1000}')
        return True

    busy = asyncio.Lock()
    async with FaultServer() as server:
        async with DynamoDBStore(table="limits", endpoint=server.endpoint, read_timeout=1) as store:
            server.always(one_by_one)
            assert await Reports(store, (), FakeClock(NOON / 1_000_000)).top(TODAY, "hint", parts=4) == []
        assert server.received["Scan"] == 4


async def test_a_page_of_counters_is_as_large_as_dynamodb_makes_it(engine: Engine) -> None:
    """Where few are wanted of what is looked at, smaller ones would only be more round trips."""
    async with fresh(engine) as store:
        await fill(store.events, many(2500))
        await store.scans.records(field=day_field(TODAY))
        assert store.stats.calls["Scan"] == 1
        assert (await store.scans.records(field=day_field(TODAY))).cursor is None


# `ratelimit table sweep` deletes what has expired, and nothing else.


@pytest.fixture
async def settings(engine: Engine) -> Settings:
    settings = Settings(table=f"sweep-{uuid4()}", endpoint=engine.endpoint, region="eu-west-1")
    await create_table(settings)
    return settings


async def test_only_what_has_expired_goes(settings: Settings) -> None:
    now = SystemClock().now()
    clock = FakeClock(now / SECOND)
    async with DynamoDBStore(settings) as store:
        for number in range(60):
            write = Write((Add("n", 1),), expires_at=now // SECOND + (100 if number < 10 else 100_000))
            await store.apply(Key(f"user-{number}", "hint"), write, now=now)
        limiter = Limiter(store, [Policy("hint", "5/day")], clock=clock)
        await limiter.check("user-0", "hint")  # which moves its time
        assert await sweep_table(settings, clock=clock) == 0
        clock.advance(200)
        assert await sweep_table(settings, clock=clock) == 9
        assert await sweep_table(settings, clock=clock) == 0
        left = {key.user for key, _ in (await store.scans.records()).entries}
    assert left == {"user-0", *(f"user-{number}" for number in range(10, 60))}


def test_the_command(ratelimit: Command, engine: Engine) -> None:
    url = engine.store_url(f"sweep-{uuid4()}")
    ratelimit("table", "create", url)
    assert ratelimit("table", "sweep", url).out.endswith(": 0 expired items deleted\n")
    assert ratelimit("table", "sweep", url, "--json").json["swept"] == 0
