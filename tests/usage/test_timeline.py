"""An action's events over all users, newest first: the same from every store, in few reads, and gone when erased."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from itertools import chain
from random import Random
from typing import Any
from uuid import uuid4

import pytest

from ratelimit.clock import DAY, HOUR
from ratelimit.config import Config, load_config
from ratelimit.dynamodb import DynamoDBStore, TableSpec, create_table
from ratelimit.dynamodb.events import event_item
from ratelimit.dynamodb.schema import TIMELINE_SHARDS
from ratelimit.errors import IndexNotFound, InvalidCursor, InvalidEvent, InvalidInput
from ratelimit.event import UsageEvent
from ratelimit.policy import Policy
from ratelimit.server.sidecar import Runtime
from ratelimit.store import MemoryStore, MirrorStore, TableStore
from ratelimit.store.base import EventFilter, TimelinePlace, timeline_place
from ratelimit.store.hashed import HashedUserStore
from ratelimit.usage import UsageLog
from tests.engines import Engine
from tests.usage.conftest import on_engine
from tests.usage.noon import NOON, at_noon, days_ago

NOW_MS = NOON // 1000
DAY_MS = DAY // 1000


@pytest.fixture(params=["memory", "dynamodb"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[TableStore]:
    store: TableStore = MemoryStore()
    if request.param == "dynamodb":
        store = await indexed(request.getfixturevalue("engine"))
    await store.open()
    yield store
    await store.close()


async def indexed(engine: Engine) -> DynamoDBStore:
    store = DynamoDBStore(table="timeline-suite", endpoint=engine.endpoint, consumed=True)
    await create_table(store.settings, TableSpec(gsi2=True))
    return store


@pytest.fixture
def action() -> str:
    """One of its own: the tests share a table."""
    return f"a#{uuid4()}"


def event(user: str, action: str, ms: int = 0, **parts: Any) -> UsageEvent:
    return UsageEvent.of(user, action, now=NOON, at_ms=NOW_MS + ms, **parts)


async def put(store: TableStore, events: list[UsageEvent], action: str) -> None:
    for start in range(0, len(events), 25):
        assert not await store.events.put(events[start : start + 25], timelines={action})


AROUND: dict[str, Any] = {"since": NOW_MS - DAY_MS, "until": NOW_MS + DAY_MS}


async def all_of(
    store: TableStore, action: str, *, limit: int = 1000, after: TimelinePlace | None = None, **asked: Any
) -> list[UsageEvent]:
    """Page by page."""
    found: list[UsageEvent] = []
    asked = AROUND | asked
    below = after or TimelinePlace(asked.pop("until"), 0)
    asked.pop("until", None)
    while True:
        page = await store.events.timeline(action, limit=limit, below=below, **asked)
        assert len(page.events) <= limit
        found += page.events
        if page.rest is None:
            return found
        below = page.rest


def newest_first(events: list[UsageEvent]) -> list[UsageEvent]:
    return sorted(events, key=timeline_place, reverse=True)


def some_events(random: Random, action: str, count: int) -> list[UsageEvent]:
    """Of ten users and four days, several in one millisecond and at midnight, every tenth refused."""
    moments = [*(random.randrange(-3 * DAY_MS, HOUR // 1000) for _ in range(20)), -DAY_MS // 2, -DAY_MS // 2 - 1]
    return [
        event(
            f"user-{random.randrange(10)}", action, random.choice(moments), allowed=(ok := random.random() < 0.9),
            status=random.choice([200, 201]) if ok else 429, resource=random.choice([None, "a", "b"]),
            id=random.choice([None, str(uuid4())]),
        )
        for _ in range(count)
    ]  # fmt: skip


async def test_every_query_has_the_answer_of_a_plain_list(
    store: TableStore, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = Random(17)
    made = some_events(random, action, 300)
    await put(store, made, action)
    for bound, at_once in ((10_000, 100), (60, 3)):
        monkeypatch.setattr("ratelimit.dynamodb.events.MAX_READ", bound)
        monkeypatch.setattr("ratelimit.dynamodb.events._AT_ONCE_FILTERED", at_once)
        for _ in range(6):
            since = NOW_MS + random.choice([-4 * DAY_MS, -DAY_MS, -DAY_MS // 2])
            until = NOW_MS + random.choice([DAY_MS, 0, -DAY_MS // 2])
            wanted = EventFilter(
                random.choice([None, True, False]), random.choice([None, None, 200, 429]), random.choice([None, "a"])
            )
            limit = random.choice([20, 50, 1000]) if bound > 60 else random.choice([20, 50])
            expected = [one for one in newest_first(made) if since <= one.at_ms < until and wanted.wants(one)]
            found = await all_of(store, action, limit=limit, since=since, until=until, wanted=wanted)
            assert found == expected, (since, until, wanted, limit)


async def test_a_page_is_full_also_where_the_newest_are_in_one_shard_and_the_last_one_knows_it(
    store: TableStore, action: str
) -> None:
    some = [event(f"user-{n}", action, -n) for n in range(400)]
    newest = [one for one in some if timeline_place(one).tie % TIMELINE_SHARDS == 0][:40]
    older = [one for one in some if one.at_ms < newest[-1].at_ms]
    even = [
        [one for one in older if timeline_place(one).tie % TIMELINE_SHARDS == n][:15] for n in range(TIMELINE_SHARDS)
    ]
    made = newest + sorted(chain(*even), key=lambda one: -one.at_ms)
    await put(store, made, action)
    today: dict[str, Any] = {"since": NOW_MS - 1000, "limit": 50}
    first = await store.events.timeline(action, below=TimelinePlace(NOW_MS + 1, 0), **today)
    assert first.rest is not None
    last = await store.events.timeline(action, below=first.rest, **today)
    assert [*first.events, *last.events] == made
    assert (len(first.events), last.rest) == (50, None)


async def test_where_it_stops_looking_early_nothing_is_told_out_of_turn(
    store: TableStore, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One shard has many that are not wanted, and behind them one that is; the others have only older ones."""
    monkeypatch.setattr("ratelimit.dynamodb.events.MAX_READ", 1)
    monkeypatch.setattr("ratelimit.dynamodb.events._AT_ONCE_FILTERED", 3)
    some = [event(f"user-{n}", action, -n, status=200) for n in range(100)]
    newest = [one for one in some if timeline_place(one).tie % TIMELINE_SHARDS == 0][:12]
    wanted = event("wanted", action, newest[-1].at_ms - NOW_MS, status=429, id=newest[-1].id)
    older = [event(f"user-{n}", action, -1000 - n, status=429) for n in range(20)]
    await put(store, [*newest, wanted, *older], action)
    assert await all_of(store, action, wanted=EventFilter(status=429)) == [wanted, *older]


async def test_what_comes_while_somebody_pages_repeats_and_hides_nothing(store: TableStore, action: str) -> None:
    await put(store, [event(f"user-{n}", action, -1000 * n) for n in range(30)], action)
    tomorrow = TimelinePlace(AROUND["until"], 0)
    first = await store.events.timeline(action, since=AROUND["since"], below=tomorrow, limit=10)
    await put(store, [event("new", action), event("late", action, -9500)], action)
    rest = await all_of(store, action, limit=7, after=first.rest)
    users = [*(f"user-{n}" for n in range(10)), "late", *(f"user-{n}" for n in range(10, 30))]
    assert [one.user for one in (*first.events, *rest)] == users


async def test_it_has_those_of_its_action_that_were_put_on_it(store: TableStore, action: str) -> None:
    on, off, other = event("alice", action), event("bob", action), event("carol", f"{action}#")
    given = event("alice", action, -5, id="order-17", metadata={"n": 1})
    assert not await store.events.put([on, other, given], timelines={action})
    assert not await store.events.put([off])
    assert await all_of(store, action) == [on, given]
    assert not await store.events.put([on, event("alice", action, 9, id="order-17", cost=2)], timelines={action})
    assert await all_of(store, action) == [on, given], "the same event is there once"
    assert not await all_of(store, f"{action}#"), "no timeline was asked for"


async def test_two_users_with_one_id_in_one_millisecond_are_two(store: TableStore, action: str) -> None:
    made = [event(f"user-{n}", action, id="order-17") for n in range(40)]
    await put(store, made, action)
    assert await all_of(store, action, limit=1) == newest_first(made)


@pytest.mark.parametrize("way", ["by day", "all"])
async def test_what_is_erased_is_gone_from_it(store: TableStore, action: str, way: str) -> None:
    mine, other = [event(f"m-{action}", action, -n) for n in range(5)], event("bob", action)
    await put(store, [*mine, other], action)
    if way == "all":
        assert (await store.erase([f"m-{action}"]))["events"] == 5
    else:
        assert await store.events.erase(f"m-{action}", mine[0].at.date()) == 5
    assert await all_of(store, action) == [other]


async def test_memory_forgets_what_gave_way() -> None:
    store = MemoryStore()
    store.events.max_events = 10
    made = [event("alice", "hint", n) for n in range(25)]
    await put(store, [event("bob", "solve")], "solve")
    await put(store, made, "hint")
    assert await all_of(store, "hint") == made[:14:-1]
    assert not await all_of(store, "solve")
    assert list(store.events._timelines) == ["hint"]


async def test_the_log_writes_it_and_reads_it_page_by_page(store: TableStore, action: str) -> None:
    async with UsageLog(store, clock=at_noon(), timelines=[action]) as usage:
        ids = [
            await usage.record(f"user-{n % 3}", action, at=days_ago(n / 10), allowed=n % 2 == 0, status=200 + n % 2)
            for n in range(30)
        ]
        await usage.record("alice", "hint")
        await usage.flush()
        pages = [await usage.timeline(action, limit=7)]
        while pages[-1].cursor:
            pages.append(await usage.timeline(action, limit=7, cursor=pages[-1].cursor))
        assert [one.id for page in pages for one in page.events] == ids
        found = await usage.timeline(action, since=days_ago(1.5), until=days_ago(0.5), allowed=False)
        assert [one.id for one in found.events] == [ids[n] for n in (7, 9, 11, 13, 15)]
        assert not (await usage.timeline(action, status=200, allowed=False)).events
        for bad in ({"limit": 0}, {"status": 99}, {"allowed": 1}, {"resource": 7}, {"since": "today"}):
            with pytest.raises(InvalidInput):
                await usage.timeline(action, **bad)
        for cursor in ("x", (await usage.events("user-1", limit=1)).cursor):
            with pytest.raises(InvalidCursor):
                await usage.timeline(action, cursor=cursor)
        with pytest.raises(InvalidCursor, match="another query"):
            await usage.timeline(action, cursor=pages[0].cursor, status=200)


async def test_a_user_s_events_are_filtered_as_well(store: TableStore, user: str) -> None:
    async with UsageLog(store, clock=at_noon()) as usage:
        ids = [await usage.record(user, "hint", status=200 + n % 2, resource=f"p-{n % 3}") for n in range(12)]
        await usage.flush()
        found = await usage.events(user, status=201, resource="p-0")
        assert {one.id for one in found.events} == {ids[3], ids[9]}
        with pytest.raises(InvalidEvent):
            await usage.events(user, status=1)


async def test_hashed_users_stay_hashes_and_a_mirror_has_it_too(action: str) -> None:
    second = MemoryStore()
    mirrored = MirrorStore(MemoryStore(), second)
    store = HashedUserStore(mirrored, "a secret of the application")
    await put(store, [event("alice", action)], action)
    (found,) = await all_of(store, action)
    assert found.user.startswith("h:")
    assert (await store.events.page("alice", found.at.date(), limit=9, **AROUND))[0].id == found.id
    await mirrored.settle()
    assert await all_of(second, action) == [found]
    await store.close()


async def test_a_reload_gives_an_action_a_timeline_and_takes_it() -> None:
    def config(on: bool) -> Config:
        return load_config(env={}, usage="memory", policies=[Policy("hint", "5/day", timeline=on)])

    first = Runtime.of(config(False))
    assert first.usage is not None
    for on, expected in ((False, 0), (True, 1), (False, 1)):
        again = Runtime.of(config(on), first)
        again.enter()
        assert again.usage is first.usage
        await again.usage.record("alice", "hint")
        await again.usage.flush()
        assert len((await again.usage.timeline("hint")).events) == expected
    await first.usage.end()


@pytest.mark.engine
async def test_it_costs_a_write_unit_more_and_a_page_few_reads(engine: Engine, action: str) -> None:
    store = await indexed(engine)
    async with store:
        made = [event(f"user-{n}", action, -n, allowed=n % 10 > 0, status=200) for n in range(300)]
        await put(store, made[:150], "none")
        plain = store.stats.write_units
        await put(store, made[:150], action)
        assert (plain, store.stats.write_units - plain) == (150, 300)
        await put(store, made[150:], action)
        for wanted, most in ((EventFilter(), 12), (EventFilter(allowed=True), 8), (EventFilter(allowed=False), 4)):
            calls, units = store.stats.calls["Query"], store.stats.read_units
            page = await store.events.timeline(
                action, since=NOW_MS - DAY_MS, below=TimelinePlace(NOW_MS + 1, 0), limit=30, wanted=wanted
            )
            assert len(page.events) == 30
            assert store.stats.calls["Query"] - calls <= most
            assert store.stats.read_units - units <= most


@pytest.mark.engine
async def test_without_the_index_events_are_kept_and_it_says_what_to_do(
    engine: Engine, action: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = on_engine(engine)
    with caplog.at_level(logging.WARNING, "ratelimit"):
        async with store, UsageLog(store, clock=at_noon(), timelines=[action]) as usage:
            await usage.record(f"user-{action}", action)
            await usage.flush()
            assert len((await usage.events(f"user-{action}")).events) == 1
            with pytest.raises(IndexNotFound, match="ratelimit table upgrade usage-suite --gsi2"):
                await usage.timeline(action)
    assert "table upgrade usage-suite --gsi2" in caplog.text


def test_the_keys_are_those_of_the_design() -> None:
    one = UsageEvent.of("alice", "run#1", now=NOON, at_ms=NOW_MS, allowed=False, id="order-17")
    item = event_item(one, {"run#1"})
    assert item["GSI2PK"]["S"][:-1] == f"ACT#run%231#{one.at:%Y%m%d}#D"
    assert item["GSI2SK"]["S"] == f"{NOW_MS}#{timeline_place(one).tie:014x}"
    assert not {"GSI2PK", "GSI2SK"} & event_item(one, {"hint"}).keys()
