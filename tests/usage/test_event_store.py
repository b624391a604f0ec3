"""What every event store promises: the same event once, newest first, and gone when erased."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from random import Random
from typing import Any

import pytest

from ratelimit.clock import DAY
from ratelimit.dynamodb import DynamoDBStore
from ratelimit.event import UsageEvent
from ratelimit.event_id import EventIds
from ratelimit.store import MemoryEventStore, TableStore
from ratelimit.store.base import day_of, position_of
from tests.engines import Engine
from tests.usage.conftest import on_engine

# An engine may delete what has expired, so the present it is.
NOW = time.time_ns() // 1000 // 86_400_000_000 * 86_400_000_000 - 12 * 3600 * 1_000_000
TODAY = day_of(NOW // 1000)
ALWAYS: dict[str, Any] = {"since": 0, "until": 10**13 - 1}


def a_uuid7(at: int) -> str:
    """As somebody else makes them."""
    return f"{at >> 16:08x}-{at & 0xFFFF:04x}-7abc-8def-0123456789ab"


def event(user: str, action: str = "hint", **parts: Any) -> UsageEvent:
    return UsageEvent.of(user, action, **{"now": NOW, **parts})


async def all_of(store: TableStore, user: str) -> list[UsageEvent]:
    return list(await store.events.page(user, TODAY, limit=1000, **ALWAYS))


async def test_what_is_put_is_found_as_it_was(store: TableStore, user: str) -> None:
    user += "#100%"
    one = event(
        user, "a/b#c", cost=3, allowed=False, status=429, duration=1.25, resource="problem-100", request_id="r-1",
        metadata={"k": 1, "ü": ["x", None, 1.5, {"deep": True}]}, id="order#17",
    )  # fmt: skip
    assert not await store.events.put([one])
    assert await all_of(store, user) == [one]


async def test_newest_first_and_page_by_page(store: TableStore, user: str) -> None:
    made = [event(user, at_ms=NOW // 1000 + number // 2) for number in range(20)]
    await store.events.put(made)
    found: list[UsageEvent] = []
    while page := await store.events.page(
        user, TODAY, limit=3, after=position_of(found[-1]) if found else None, **ALWAYS
    ):
        found += page
    assert [one.id for one in found] == [one.id for one in reversed(made)]


async def test_only_the_range_and_the_day(store: TableStore, user: str) -> None:
    start = NOW // 1000
    await store.events.put([event(user, at_ms=start + ms) for ms in (0, 1, 2, 3)])
    await store.events.put([event(user, at_ms=start - 86_400_000), event(user + "x")])
    found = await store.events.page(user, TODAY, since=start + 1, until=start + 3, limit=10)
    assert [one.at_ms - start for one in found] == [2, 1]
    after = position_of(found[0])
    assert [
        one.at_ms - start
        for one in await store.events.page(user, TODAY, since=start, until=start + 9, limit=9, after=after)
    ] == [1, 0]


async def test_the_same_event_is_one_however_often_it_is_put(store: TableStore, user: str) -> None:
    one, other = event(user), event(user, id="order-17")
    for _ in range(2):
        assert not await store.events.put([one, other, one, other])
    assert {found.id for found in await all_of(store, user)} == {one.id, "order-17"}
    assert len(await all_of(store, user)) == 2


@pytest.mark.parametrize("id", ["order-17", a_uuid7(NOW // 1000), a_uuid7(NOW // 1000 + 5)])
async def test_the_same_id_is_the_first_event_also_with_another_time_and_action(
    store: TableStore, user: str, id: str
) -> None:
    first = event(user, id=id, cost=1, at_ms=NOW // 1000)
    await store.events.put([first])
    yesterday = event(user, "solve", id=id, cost=2, at_ms=NOW // 1000 - 86_400_000)
    await store.events.put([yesterday, event(user, id=id, cost=3, at_ms=NOW // 1000 + 5), event(user, "solve", id=id)])
    await store.events.put([event(user, id=id, cost=4, at_ms=NOW // 1000)])
    assert await all_of(store, user) == [first]
    assert not await store.events.page(user, TODAY - timedelta(days=1), limit=9, **ALWAYS)


async def test_an_id_is_free_again_when_its_event_has_expired(store: TableStore, user: str) -> None:
    """Also where the table has not yet taken the note of it away."""
    long_ago = event(user, id="order-17", now=NOW - 91 * DAY)
    await store.events.put([long_ago])
    for again in (event(user, id="order-17", cost=2), event(user, id="order-17", cost=3, at_ms=NOW // 1000 + 5)):
        await store.events.put([again])
    assert [one.cost for one in await all_of(store, user)] == [2]


async def test_racers_with_one_id_make_one_event(store: TableStore, user: str) -> None:
    racers = [event(user, id="order-17", cost=cost, at_ms=NOW // 1000 + cost) for cost in range(20)]
    await asyncio.gather(*(store.events.put([one]) for one in racers))
    assert len(await all_of(store, user)) == 1


async def test_the_same_id_of_two_users_is_two_events(store: TableStore, user: str) -> None:
    await store.events.put([event(user, id="1"), event(user + "x", id="1")])
    assert len(await all_of(store, user)) == len(await all_of(store, user + "x")) == 1


async def test_erased_is_gone_and_counted(store: TableStore, user: str) -> None:
    events = store.events
    for _ in range(3):
        await events.put([event(user, "a#b") for _ in range(25)])
    await events.put([event(user, "solve", id="x"), event(user, id="y"), event(user + "x", id="y")])
    assert await events.actions(user, TODAY) == {"a#b", "solve", "hint"}
    assert await events.erase(user, TODAY) == 77
    assert (await events.erase(user, TODAY), await events.actions(user, TODAY)) == (0, set())
    assert (await events.forget(user), await events.forget(user)) == (2, 0)
    assert await all_of(store, user) == []
    assert len(await all_of(store, user + "x")) == 1
    await events.put([event(user, id="y", cost=9)])
    assert [one.cost for one in await all_of(store, user)] == [9], "nothing is remembered"


async def test_a_batch_is_one_call_and_one_unit_an_event(engine: Engine, user: str) -> None:
    store = on_engine(engine)
    async with store:
        before = dict(store.stats.calls), store.stats.write_units
        await store.events.put([event(user, metadata={"k": "x" * 2000}) for _ in range(25)])
        assert store.stats.calls["BatchWriteItem"] - before[0].get("BatchWriteItem", 0) == 1
        assert store.stats.write_units - before[1] == 25
        await store.events.put([event(user, id="order-17")])
        assert store.stats.calls["PutItem"] == 2
        assert store.stats.write_units - before[1] == 27


async def test_it_opens_with_its_first_use(engine: Engine, user: str) -> None:
    store = DynamoDBStore(table="usage-lazy", endpoint=engine.endpoint, create=True)
    assert not await store.events.put([event(user)])
    await store.close()


async def test_memory_is_bounded_and_what_gave_way_is_counted() -> None:
    store = MemoryEventStore(max_events=10)
    ids = EventIds()
    made = [event("alice", id=ids.new(NOW // 1000 + number)) for number in range(25)]
    await store.put(made)
    assert (len(store), store.evicted) == (10, 15)
    assert list(await store.page("alice", TODAY, limit=99, **ALWAYS)) == made[:14:-1]


async def test_what_gives_way_may_stand_anywhere_in_its_day() -> None:
    store, random = MemoryEventStore(max_events=10), Random(17)
    kept: list[UsageEvent] = []
    for _ in range(200):
        kept = [*kept, event("alice", at_ms=NOW // 1000 + random.randrange(1000))][-10:]
        await store.put(kept[-1:])
        expected = sorted(kept, key=position_of, reverse=True)
        assert list(await store.page("alice", TODAY, limit=99, **ALWAYS)) == expected


async def test_what_gave_way_is_not_remembered_either() -> None:
    store = MemoryEventStore(max_events=10)
    for number in range(25):
        await store.put([event(f"user-{number}", id="order-17")])
    assert len(store._seen) == 10, "and nothing empty of the users who are gone"
    remembered = [await store.forget(f"user-{number}") for number in range(25)]
    assert remembered == [0] * 15 + [1] * 10


@pytest.mark.parametrize("bad", [0, -1, 1.5])
def test_the_bound_must_be_a_number(bad: Any) -> None:
    with pytest.raises(ValueError, match="max_events"):
        MemoryEventStore(max_events=bad)


async def test_what_is_kept_under_an_id_is_found(store: TableStore, user: str) -> None:
    """Whatever else it says there: that is what its finder wants to know."""
    made, given = event(user, cost=2), event(user, id="order-17", at_ms=NOW // 1000 - 5)
    await store.events.put([made, given])
    later = event(user, id="order-17", action="solve", at_ms=NOW // 1000)
    moved = event(user, id=made.id, at_ms=made.at_ms + 60_000)
    for asked, found in (
        ([made, given], [made, given]),
        ([event(user, id=made.id, cost=9, at_ms=made.at_ms), later, moved, made], [made, given, made, made]),
        ([event(user, id="order-18"), event(user), event(f"{user}x", id="order-17")], [None, None, None]),
        ([], []),
    ):
        assert list(await store.events.find(asked)) == found


async def test_an_id_whose_event_has_expired_is_free(store: TableStore, user: str) -> None:
    old = event(user, id="order-17", at_ms=NOW // 1000 - 80 * DAY // 1000)
    await store.events.put([old])
    assert list(await store.events.find([event(user, id="order-17", at_ms=NOW // 1000)])) == [old]
    after = event(user, id="order-17", now=(old.expires_at + 1) * 1_000_000)
    assert list(await store.events.find([after])) == [None]
