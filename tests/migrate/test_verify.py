"""A verification finds what is missing, what is more, and what is not the same; and says where."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

import msgspec
import pytest

from ratelimit import UsageEvent, User
from ratelimit.dynamodb import DynamoDBStore, parse_url
from ratelimit.migrate import Entity, MigrationPlan, Verdict
from ratelimit.migrate.verify import EventSample
from ratelimit.names import Key
from ratelimit.store import Add, Drop, Write
from tests.migrate.plans import bring, check, events_in, plan_of
from tests.migrate.sources import to_sqlite
from tests.migrate.world import World

Damage: TypeAlias = Callable[[DynamoDBStore, UsageEvent], Awaitable[str]]


async def _row_lost(store: DynamoDBStore, event: UsageEvent) -> str:
    """One of a day, the others put back."""
    day = event.at.date()
    others = await store.events.page(event.user, day, since=0, until=10**13, limit=1000)
    await store.events.erase(event.user, day)
    if kept := [one for one in others if one.id != event.id]:
        await store.events.put(kept)
    return f"{event.user} {day} {event.action}"


async def _row_more(store: DynamoDBStore, event: UsageEvent) -> str:
    await store.events.put([UsageEvent.of(event.user, event.action, now=event.at_ms * 1000)])
    return f"{event.user} {event.at.date()} {event.action}"


async def _row_changed(store: DynamoDBStore, event: UsageEvent) -> str:
    await store.events.put([msgspec.structs.replace(event, cost=99)])
    return f"{event.user} {event.id}"


async def _row_exchanged(store: DynamoDBStore, event: UsageEvent) -> str:
    await _row_lost(store, event)
    return await _row_more(store, event)


async def _user_changed(store: DynamoDBStore, event: UsageEvent) -> str:
    old = await store.directory.read(User, event.user)
    assert await store.directory.replace(old, User(event.user, plan="other"), now=1)
    return event.user


async def _user_gone(store: DynamoDBStore, event: UsageEvent) -> str:
    assert await store.directory.replace(await store.directory.read(User, event.user), None, now=1)
    return event.user


async def _user_more(store: DynamoDBStore, event: UsageEvent) -> str:
    assert await store.directory.replace(None, User("newcomer"), now=1)
    return "newcomer"


async def _counter_less(store: DynamoDBStore, event: UsageEvent) -> str:
    return await _change(store, event, -1)


async def _counter_more(store: DynamoDBStore, event: UsageEvent) -> str:
    return await _change(store, event, 1)


async def _counter_gone(store: DynamoDBStore, event: UsageEvent) -> str:
    await store.delete(Key(event.user, event.action))
    return f"{event.user} {event.action}"


async def _field_gone(store: DynamoDBStore, event: UsageEvent) -> str:
    field = f"u{event.at:%y%m%d}"
    await store.apply(Key(event.user, event.action), Write((Drop(field),), 2**33), now=0)
    return f"{event.user} {event.action} {field}"


async def _counter_planted(store: DynamoDBStore, event: UsageEvent) -> str:
    """One that nothing in the source comes to."""
    await store.apply(Key(event.user, event.action), Write((Add("w1_999999", 7),), 2**33), now=0)
    return f"{event.user} {event.action} w1_999999"


async def _record_more(store: DynamoDBStore, event: UsageEvent) -> str:
    await store.apply(Key("stranger", "hint"), Write((Add(f"u{event.at:%y%m%d}", 5),), 2**33), now=0)
    return "stranger hint"


async def _change(store: DynamoDBStore, event: UsageEvent, by: int) -> str:
    field = f"u{event.at:%y%m%d}"
    await store.apply(Key(event.user, event.action), Write((Add(field, by),), 2**33), now=0)
    return f"{event.user} {event.action} {field}"


@pytest.fixture
async def brought(table: str, tmp_path: Path) -> MigrationPlan:
    asked = plan_of(to_sqlite(World(users=5, rows=40), tmp_path / "app.db"), table, tmp_path)
    await bring(asked)
    verdict = await check(asked)
    assert verdict.same
    assert verdict.differences == []
    return asked


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "entity", "kind"),
    [
        (_row_lost, "events", "missing"),
        (_row_more, "events", "more"),
        (_row_changed, "events", "different"),
        (_row_exchanged, "events", "different"),
        (_user_changed, "users", "different"),
        (_user_gone, "users", "missing"),
        (_user_more, "users", "more"),
        (_counter_less, "counters", "missing"),
        (_counter_more, "counters", "more"),
        (_counter_gone, "counters", "missing"),
        (_field_gone, "counters", "missing"),
        (_counter_planted, "counters", "more"),
        (_record_more, "counters", "more"),
    ],
)
async def test_what_is_not_the_same_is_named(damage: Damage, entity: Entity, kind: str, brought: MigrationPlan) -> None:
    table = brought.config.store
    event = min(await events_in(table), key=lambda one: one.at_ms)
    async with DynamoDBStore(parse_url(table)) as store:
        where = await damage(store, event)
    verdict = await check(brought)
    assert not verdict.same
    assert _of(verdict, entity) == {kind: 1}
    assert where in [one.what for one in verdict.differences]
    for other in verdict.entities:
        assert other == entity or _of(verdict, other) == {}
    assert (await check(brought, more_is_fine=True)).same is (kind == "more")


async def test_what_the_source_got_since_is_missing(tmp_path: Path, brought: MigrationPlan) -> None:
    with sqlite3.connect(tmp_path / "app.db") as connection:
        now = datetime.now(UTC).replace(tzinfo=None).isoformat(sep=" ")
        connection.execute("INSERT INTO usage_log VALUES (999, 1, 'swim', NULL, NULL, ?)", (now,))
    connection.close()
    verdict = await check(brought)
    assert _of(verdict, "events") == {"missing": 1}
    assert _of(verdict, "counters") == {"missing": 1}
    await bring(brought)
    assert (await check(brought)).same


async def test_what_came_after_the_mark_is_missing_too(tmp_path: Path, brought: MigrationPlan) -> None:
    """Of a user and action that were brought over already."""
    with sqlite3.connect(tmp_path / "app.db") as connection:
        now = datetime.now(UTC).replace(tzinfo=None).isoformat(sep=" ")
        row = connection.execute("SELECT user_id, action FROM usage_log").fetchone()
        connection.execute("INSERT INTO usage_log VALUES (999, ?, ?, NULL, NULL, ?)", (*row, now))
    connection.close()
    assert _of(await check(brought), "counters")["missing"] >= 2  # the day, and the month
    await bring(brought)
    assert (await check(brought)).same


async def test_rows_that_are_rejected_are_told(tmp_path: Path, brought: MigrationPlan) -> None:
    with sqlite3.connect(tmp_path / "app.db") as connection:
        connection.execute("INSERT INTO usage_log VALUES (999, 1, 'swim', NULL, NULL, 'yesterday')")
    connection.close()
    verdict = await check(brought)
    assert verdict.same
    assert verdict.entities["events"].rejected == 1


async def test_one_altered_event_of_a_file_is_found(table: str, tmp_path: Path) -> None:
    """However large its rows are."""
    path = tmp_path / "usage_log.jsonl"
    row = {"user_id": 7, "action": "hint", "created_at": datetime.now(UTC).isoformat(), "metadata": {"text": "x" * 400}}
    path.write_text("".join(json.dumps({"id": number, **row}) + "\n" for number in range(100)))
    asked = plan_of(path, table, tmp_path, entities=("events",))
    await bring(asked)
    async with DynamoDBStore(parse_url(table)) as store:
        event = (await events_in(table))[50]
        await store.events.put([msgspec.structs.replace(event, cost=99)])
    verdict = await check(asked)
    assert _of(verdict, "events") == {"different": 1}
    assert verdict.differences[0].what == f"7 {event.id}"


def test_a_sample_is_the_same_on_both_sides_in_whatever_order() -> None:
    events = [UsageEvent.of("alice", "hint", now=10**15, id=f"event-{number}") for number in range(50)]
    sample = EventSample(most=10)
    for event in events:
        sample.keep(hash(event.id), event)
    for event in reversed(events):
        sample.compare(event)
    assert (sample.compared, sample.different) == (10, [])


def _of(verdict: Verdict, entity: Entity) -> dict[str, int]:
    compared = verdict.entities[entity]
    found = {"missing": compared.missing, "more": compared.more, "different": compared.different}
    return {kind: count for kind, count in found.items() if count}
