"""Nobody's use is lost on the way: not what a dump did not hold, not what was rejected at first, not what came late."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from ratelimit import Limiter, Policy
from ratelimit.clock import Clock
from ratelimit.dynamodb import DynamoDBStore, parse_url
from ratelimit.migrate import Counts, Done, Entity, MigrationPlan, dry_run, run
from ratelimit.names import Key
from ratelimit.store.hashed import UserHash
from ratelimit.testing import FakeClock
from tests.engines import Engine
from tests.migrate.plans import BrokenOff, bring, check, events_in, plan_of, record_in, unheard

pytestmark = pytest.mark.slow

NOW = datetime.now(UTC)


def ago(**span: float) -> str:
    return (NOW - timedelta(**span)).isoformat()


def lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def uses(*minutes: float, user: str = "7", action: str = "hint") -> list[dict[str, Any]]:
    return [{"id": f"{user}{at}", "user_id": user, "action": action, "created_at": ago(minutes=at)} for at in minutes]


async def total(table: str, user: str = "7", action: str = "hint") -> int:
    """Of all days."""
    return sum(value for field, value in (await record_in(table, user, action)).items() if len(field) == len("u261121"))


async def at(clock: Clock, asked: MigrationPlan) -> Done:
    return await run(asked, listener=unheard, clock=clock)


@pytest.mark.parametrize("policy", [Policy("hint", "10/day"), Policy("hint", "10/day", algorithm="gcra")])
async def test_a_dump_is_older_than_the_run(policy: Policy, table: str, tmp_path: Path) -> None:
    """The old system goes on between the dump and the run: what it did comes with the second dump."""
    rows = uses(70, 65, 55, 50, 45, 30, 20)
    asked = plan_of(tmp_path / "usage_log.jsonl", table, tmp_path, policies=[policy])
    lines(tmp_path / "usage_log.jsonl", rows[:2])
    await at(FakeClock(NOW - timedelta(minutes=40)), asked)
    lines(tmp_path / "usage_log.jsonl", rows)
    done = await at(FakeClock(NOW - timedelta(minutes=1)), asked)
    assert done.checkpoint.of("counters").written == 1
    assert await total(table) == 7
    assert (await check(asked)).same
    assert (await bring(asked)).checkpoint.of("counters").written == 0
    assert await total(table) == 7


async def test_a_row_that_is_committed_late(table: str, tmp_path: Path) -> None:
    """Marks are those of a user and action: what others did meanwhile does not hide it."""
    path = lines(tmp_path / "usage_log.jsonl", [*uses(9, 8), *uses(9, 1, user="8")])
    asked = plan_of(path, table, tmp_path)
    await bring(asked)
    lines(path, [*uses(9, 8, 5), *uses(9, 1, user="8")])
    await bring(asked)
    assert (await total(table), await total(table, "8")) == (3, 2)
    assert (await check(asked)).same


async def test_counters_wait_until_no_use_is_rejected(table: str, tmp_path: Path) -> None:
    rows = [*uses(5, 6), *uses(3, 4, 7, action="tip")]
    path, policies = lines(tmp_path / "usage_log.jsonl", rows), [Policy("hint", "5/day")]
    for _ in range(2):
        done = await bring(plan_of(path, table, tmp_path, policies=policies))
        counts = done.checkpoint.counts
        assert (counts["events"].rejected, counts["counters"].written) == (3, 0)
        assert any("3 by now" in note and str(done.rejects) in note for note in done.notes), done.notes
        assert await record_in(table, "7", "hint") == {}
    mended = plan_of(path, table, tmp_path, policies=policies, mapping={"actions": {"tip": "hint"}})
    assert "--leave-rejected" not in str((await bring(mended)).notes)
    assert await total(table) == 5
    assert (await check(mended)).same


async def test_rejected_uses_may_be_left_out_for_good(table: str, tmp_path: Path) -> None:
    path = lines(tmp_path / "usage_log.jsonl", [*uses(5, 6), *uses(3, action="tip")])
    asked = plan_of(path, table, tmp_path, policies=[Policy("hint", "5/day")])
    await bring(asked)
    for written in (1, 0):
        done = await bring(replace(asked, leave_rejected=True))
        assert (done.checkpoint.of("events").rejected, done.checkpoint.of("counters").written) == (1, written)
        assert not any("--leave-rejected" in note for note in done.notes), done.notes
    assert await total(table) == 2
    assert (await check(asked)).same


async def test_counters_alone_list_what_is_rejected(table: str, tmp_path: Path) -> None:
    path = lines(tmp_path / "usage_log.jsonl", [*uses(5), *uses(3, action="tip")])
    asked = plan_of(path, table, tmp_path, policies=[Policy("hint", "5/day")], entities=("counters",))
    forecast = await dry_run(asked, listener=unheard)
    done = await bring(asked)
    assert done.checkpoint.of("counters").rejected == forecast.counts["counters"].rejected == 1
    assert done.rejects is not None
    assert "tip" in Path(done.rejects).read_text()
    assert forecast.write_units == done.checkpoint.units == 0
    assert any("--leave-rejected" in note for note in forecast.notes), forecast.notes


async def test_what_came_while_a_run_was_broken_off_is_no_future(table: str, tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "app.db")
    database.execute("CREATE TABLE usage_log (id INTEGER PRIMARY KEY, user_id TEXT, action TEXT, created_at TEXT)")

    def add(first: int, hours: float) -> None:
        rows = [(number, "7", "hint", ago(hours=hours, seconds=number)) for number in range(first, first + 10)]
        with database:
            database.executemany("INSERT INTO usage_log VALUES (?, ?, ?, ?)", rows)

    def break_off(entity: Entity, counts: Counts, done: int, size: int | None) -> None:
        if counts.read >= 4:
            raise BrokenOff

    asked = plan_of(f"sqlite:///{tmp_path}/app.db", table, tmp_path, batch_size=4)
    add(0, hours=5)
    with pytest.raises(BrokenOff):
        await run(asked, listener=break_off, clock=FakeClock(NOW - timedelta(hours=3)))
    add(100, hours=1)
    database.close()
    done = await bring(asked)
    assert (done.checkpoint.of("events").read, done.checkpoint.of("events").rejected) == (20, 0)
    assert await total(table) == len(await events_in(table)) == 20
    assert (await check(asked)).same


async def test_a_use_costs_what_its_policy_says_unless_its_row_does(table: str, tmp_path: Path) -> None:
    rows = [*uses(1, 2), {**uses(3)[0], "cost": 2}]
    policies = [Policy("hint", "50/week", cost=5)]
    asked = plan_of(lines(tmp_path / "usage_log.jsonl", rows), table, tmp_path, policies=policies)
    await bring(asked)
    assert await total(table) == 12
    assert sorted(event.cost for event in await events_in(table)) == [2, 5, 5]
    assert (await check(asked)).same


async def test_hashed_users_of_a_table_that_is_mirrored(engine: Engine, table: str, tmp_path: Path) -> None:
    old, secret = engine.store_url(f"old-{uuid4().hex[:8]}", create="true"), "a secret of some length"
    async with Limiter(DynamoDBStore(parse_url(old)), [Policy("hint", "9/day")]) as limiter:
        await limiter.check("alice", "hint", cost=6)
    asked = plan_of(old, table, tmp_path, mirrored=True, entities=("counters",))
    asked = replace(asked, config=replace(asked.config, user_hash_key=secret))
    assert (await bring(asked)).checkpoint.of("counters").written == 1
    assert await total(table, UserHash(secret).of("alice")) == 6
    async with DynamoDBStore(parse_url(table)) as store:
        assert await store.read(Key("alice", "hint")) == {}
