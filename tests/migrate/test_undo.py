"""A run is taken back, or replaced, by its id: exactly what it has written, and nothing of what came since."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from ratelimit import InvalidInput, Limiter, Policy, StoreUnavailable, User
from ratelimit.clock import SystemClock, since_epoch
from ratelimit.dynamodb import DynamoDBStore, parse_url
from ratelimit.migrate import MigrationPlan, Undone, UndoPlan, migration_settings, undo
from ratelimit.migrate.checkpoint import new_run
from ratelimit.migrate.ledger import FieldChange, is_same_place
from ratelimit.migrate.runner import MigrationRun
from ratelimit.migrate.target import RawTable, Target
from ratelimit.migrate.undo import fields_after, remaining
from ratelimit.testing import FakeClock
from tests.migrate.plans import BrokenOff, bring, check, events_in, plan_of, record_in, unheard
from tests.migrate.sources import to_sqlite
from tests.migrate.world import World

NOW = datetime.now(UTC).replace(microsecond=0)
POLICIES = [Policy("hint", "50/day; 500/month"), Policy("search", "60/hour", algorithm="gcra")]


def uses(count: int, *, action: str = "hint", user: str = "7", hours: float = 2, **more: Any) -> list[dict[str, Any]]:
    first = NOW - timedelta(hours=hours)
    return [
        {
            "id": f"{action}{hours}{n}", "user_id": user, "action": action,
            "created_at": (first - timedelta(seconds=n)).replace(tzinfo=None).isoformat(" "), **more,
        }
        for n in range(count)
    ]  # fmt: skip


def dump(folder: Path, rows: Sequence[dict[str, Any]], **sections: Any) -> Path:
    path = folder / "dump.json"
    path.write_text(json.dumps({"usage_log": rows, **sections}))
    return path


async def items(table: str) -> list[Any]:
    async with RawTable(migration_settings(parse_url(table))) as raw:
        found, _ = await raw.scan(limit=1000)
        return sorted(found, key=lambda item: (item["PK"]["S"], item["SK"]["S"]))


async def take_back(asked: MigrationPlan, *runs: str, dry_run: bool = False) -> Undone:
    back = UndoPlan(runs=runs, target=asked.target, work_dir=asked.work_dir, dry_run=dry_run)
    return await undo(back, listener=unheard)


async def totals(table: str, user: str = "7", action: str = "hint") -> int:
    record = await record_in(table, user, action)
    return sum(value for field, value in record.items() if len(field) == len("u261121") and field[0] == "u")


async def test_a_table_is_as_it_was_before(table: str, tmp_path: Path) -> None:
    source = to_sqlite(World(users=6, rows=60), tmp_path / "app.db")
    asked = plan_of(source, table, tmp_path, policies=POLICIES, any_action=True)
    done = await bring(asked)
    assert len(await items(table)) > 70
    forecast = await take_back(asked, done.run, dry_run=True)
    assert forecast.taken_back == {name: each.written for name, each in done.checkpoint.counts.items()}
    assert len(await items(table)) > 70
    assert (await take_back(asked, done.run)).taken_back == forecast.taken_back
    assert await items(table) == []
    assert not any((await take_back(asked, done.run)).taken_back.values())
    await bring(asked)
    assert (await check(asked)).same


async def test_what_was_used_since_stays(table: str, tmp_path: Path) -> None:
    rows = [*uses(5), *uses(3, action="search", hours=0.001)]
    async with Limiter(DynamoDBStore(parse_url(table)), POLICIES) as limiter:
        await limiter.check("7", "hint", cost=2)
        before = await record_in(table, "7", "hint")
        asked = plan_of(dump(tmp_path, rows, users=[{"id": 7}, {"id": 8}]), table, tmp_path, policies=POLICIES)
        done = await bring(asked)
        await limiter.check("7", "hint", cost=4)
        await limiter.check("7", "search", cost=10)
        async with DynamoDBStore(parse_url(table)) as store:
            user = await store.directory.read(User, "8")
            await store.directory.replace(user, User("8", plan="mine"), now=SystemClock().now())
        undone = await take_back(asked, done.run)
        assert undone.kept == ["user 8: changed since"]
        record = await record_in(table, "7", "hint")
        assert {field: value - 4 for field, value in record.items()} == before
        assert (await limiter.peek("7", "search")).quotas[0].used in (9, 10)  # some of it has flowed back
        assert await events_in(table) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("was", "now"),
    [
        ({"events": {"timezone": "UTC"}}, {"events": {"timezone": "America/New_York"}}),
        ({}, {"events": {"cost": "units"}}),
        ({}, {"events": {"time": "seen_at"}}),
        ({}, {"actions": {"hint": "tip"}}),
        ({}, {"users": {"uuids": "dashed"}}),
    ],
)
async def test_a_corrected_mapping_replaces_the_run(
    was: dict[str, Any], now: dict[str, Any], table: str, tmp_path: Path
) -> None:
    path = dump(tmp_path, uses(6, hours=30, units=5, seen_at=(NOW - timedelta(hours=1)).isoformat()))
    first = plan_of(path, table, tmp_path, mapping=was)
    run = (await bring(first)).run
    corrected = plan_of(path, table, tmp_path, mapping=now)
    with pytest.raises(InvalidInput, match=rf"other settings .*--replace {run}"):
        await bring(corrected)
    assert len(await events_in(table)) == 6
    for _ in range(2):  # the same command again brings nothing twice
        await bring(replace(corrected, replace=[run]))
        assert len(await events_in(table)) == 6
        assert (await check(corrected)).same
    expected = 30 if "cost" in now.get("events", {}) else 6
    assert await totals(table, action="tip" if "actions" in now else "hint") == expected
    if "actions" in now:
        assert await record_in(table, "7", "hint") == {}


async def test_a_corrected_cost_of_a_policy(table: str, tmp_path: Path) -> None:
    path = dump(tmp_path, uses(3))
    run = (await bring(plan_of(path, table, tmp_path, policies=[Policy("hint", "50/day")]))).run
    corrected = plan_of(path, table, tmp_path, policies=[Policy("hint", "50/day", cost=5)])
    with pytest.raises(InvalidInput, match=r"policies.hint.cost: 1 before, 5 now"):
        await bring(corrected)
    await bring(replace(corrected, replace=[run]))
    assert await totals(table) == 15


async def test_a_setting_that_concerns_nothing_that_was_brought_is_no_matter(table: str, tmp_path: Path) -> None:
    path = dump(tmp_path, [*uses(2), *uses(2, action="old")])
    policies = [Policy("hint", "9/day"), Policy("tip", "9/day", cost=3)]
    await bring(plan_of(path, table, tmp_path, policies=policies[:1]))
    await bring(plan_of(path, table, tmp_path, policies=policies, mapping={"actions": {"old": "hint"}}))
    assert await totals(table) == 4


async def test_runs_on_top_of_each_other_are_taken_back_together(table: str, tmp_path: Path) -> None:
    asked, clock = plan_of(dump(tmp_path, uses(4)), table, tmp_path), FakeClock(NOW)
    first = (await bring(asked, clock)).run
    dump(tmp_path, [*uses(4), *uses(3, hours=1)])
    clock.advance(0.001)
    second = (await bring(asked, clock)).run
    assert await totals(table) == 7
    with pytest.raises(InvalidInput, match=f"run {second} came later and counts on run {first}"):
        await take_back(asked, first)
    await take_back(asked, second)
    assert await totals(table) == 4
    clock.advance(0.001)
    second = (await bring(asked, clock)).run
    await take_back(asked, first, second)
    assert await items(table) == []


def test_runs_that_begin_within_a_second_sort_as_they_began() -> None:
    """That order is the one in which they are taken back."""
    ids = [new_run(since_epoch(NOW) + number) for number in range(50)]
    assert ids == sorted(ids)


async def test_a_second_run_that_wrote_nothing_takes_nothing_back(table: str, tmp_path: Path) -> None:
    asked = plan_of(dump(tmp_path, uses(4)), table, tmp_path)
    await bring(asked)
    before = await items(table)
    undone = await take_back(asked, (await bring(asked)).run)
    assert not any(undone.taken_back.values())
    assert await items(table) == before


async def test_a_run_that_was_broken_off_is_taken_back_too(
    table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = plan_of(dump(tmp_path, uses(40)), table, tmp_path, batch_size=7)
    take = MigrationRun._take

    async def broken_off(self: MigrationRun, entity: Any, rows: Any, counts: Any) -> None:
        await take(self, entity, rows, counts)
        if counts.read >= 21:
            raise KeyboardInterrupt  # after the write, before the checkpoint

    monkeypatch.setattr(MigrationRun, "_take", broken_off)
    with pytest.raises(KeyboardInterrupt):
        await bring(asked)
    monkeypatch.undo()
    assert len(await events_in(table)) == 21
    (saved,) = asked.work_dir.glob("*.checkpoint")
    run = json.loads(saved.read_text())["run"]
    assert (await take_back(asked, run)).taken_back["events"] == 21
    assert await items(table) == []
    assert not list(asked.work_dir.glob("*.checkpoint"))


@pytest.mark.parametrize("method", ["delete_events", "apply", "delete_record"])
async def test_an_undo_that_was_broken_off_goes_on(
    method: str, table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Limiter(DynamoDBStore(parse_url(table)), [Policy("hint", "90/day")]) as limiter:
        await limiter.check("1", "hint", cost=2)
    monkeypatch.setattr(import_module("ratelimit.migrate.undo"), "_SOME", 20)
    rows = [row for user in "123" for row in uses(20, user=user)]
    for number, row in enumerate(rows):
        row["id"] = number
    asked = plan_of(dump(tmp_path, rows), table, tmp_path)
    run, calls = (await bring(asked)).run, 0
    work = getattr(Target, method)

    async def broken_off(self: Target, *args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        mine = calls  # several are on their way at once
        found = await work(self, *args, **options)
        if mine == (2 if method == "delete_events" else 1):
            raise StoreUnavailable("no answer") if method == "apply" else BrokenOff
        return found

    monkeypatch.setattr(Target, method, broken_off)
    if method == "apply":  # what is ambiguous is found out
        await take_back(asked, run)
    else:
        with pytest.raises(BrokenOff):
            await take_back(asked, run)
    monkeypatch.undo()
    await take_back(asked, run)
    (left,) = await items(table)
    assert left["PK"]["S"] == "USR#1#LIM#hint"
    assert await totals(table, "1") == 2


async def test_units_that_were_given_back_since_are_not_kept(table: str, tmp_path: Path) -> None:
    rows = [*uses(5), *uses(30, action="search", hours=0.001)]
    async with Limiter(DynamoDBStore(parse_url(table)), POLICIES) as limiter:
        run = (await bring(plan_of(dump(tmp_path, rows), table, tmp_path, policies=POLICIES))).run
        for action in ("hint", "search"):
            await limiter.check("7", action)
            await limiter.refund("7", action, cost=3)
        await take_back(plan_of("", table, tmp_path), run)
        assert [(await limiter.peek("7", action)).quotas[0].used for action in ("hint", "search")] == [0, 0]
        assert await totals(table) == await totals(table, action="search") == 0


async def test_a_run_that_was_broken_off_is_not_gone_on_with_by_other_settings(
    table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = plan_of(dump(tmp_path, uses(9)), table, tmp_path, batch_size=3, policies=[Policy("hint", "50/day")])
    put = Target.put_events

    async def broken_off(self: Target, events: Any) -> Any:
        await put(self, events)
        raise BrokenOff

    monkeypatch.setattr(Target, "put_events", broken_off)
    with pytest.raises(BrokenOff):
        await bring(asked)
    monkeypatch.undo()
    with pytest.raises(InvalidInput, match=r"policies.hint.cost: 1 before, 5 now"):
        await bring(replace(asked, config=replace(asked.config, policies=(Policy("hint", "50/day", cost=5),))))
    assert len((await bring(asked)).checkpoint.done) == 2


async def test_a_run_that_is_refused_takes_nothing_back(table: str, tmp_path: Path) -> None:
    asked = plan_of(dump(tmp_path, uses(4)), table, tmp_path, entities=["events"])
    first = (await bring(asked)).run
    dump(tmp_path, [*uses(4), *uses(3, hours=1)])
    second = (await bring(asked)).run
    other = plan_of(asked.source, table, tmp_path, entities=["events"], mapping={"events": {"timezone": "Asia/Tokyo"}})
    with pytest.raises(InvalidInput, match=f"run {second} has brought this source with other settings"):
        await bring(replace(other, replace=[first]))
    assert len(await events_in(table)) == 7


async def test_runs_of_another_folder_are_told_of(table: str, tmp_path: Path) -> None:
    asked = plan_of(dump(tmp_path, uses(4)), table, tmp_path)
    assert not any("ledger" in note for note in (await bring(asked)).notes)
    assert not any("ledger" in note for note in (await bring(asked)).notes)
    elsewhere = replace(asked, work_dir=tmp_path / "elsewhere")
    assert any("none from this source has left a ledger in" in note for note in (await bring(elsewhere)).notes)


async def test_an_event_that_is_there_with_other_content_is_counted_apart(table: str, tmp_path: Path) -> None:
    rows = uses(3, problem_id=1)
    asked = plan_of(dump(tmp_path, rows), table, tmp_path, entities=["events"])
    await bring(asked)
    dump(tmp_path, [{**rows[0], "problem_id": 2}, *rows[1:]])
    counts = (await bring(asked)).checkpoint.counts["events"]
    assert (counts.written, counts.there, counts.kept) == (0, 2, 1)
    assert {event.resource for event in await events_in(table)} == {"1"}


def test_a_table_is_the_same_one_by_its_url_and_by_the_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_REGION", raising=False)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert is_same_place(("limits", "eu-west-1", None), ("limits", None, None))
    assert not is_same_place(("limits", "eu-west-2", None), ("limits", None, None))
    assert not is_same_place(("limits", "eu-west-1", None), ("other", "eu-west-1", None))


async def test_what_cannot_be_undone(table: str, tmp_path: Path) -> None:
    asked = plan_of(dump(tmp_path, uses(1)), table, tmp_path)
    run = (await bring(asked)).run
    for wrong in ("20260105-120000-123456-a1b2", "../../x", ""):
        with pytest.raises(InvalidInput, match=rf"there are: {run}.*--work-dir"):
            await take_back(asked, wrong)
    elsewhere = UndoPlan(runs=[run], target=replace(asked.target, table="other"), work_dir=asked.work_dir)
    with pytest.raises(InvalidInput, match="wrote to table"):
        await undo(elsewhere, listener=unheard)
    (ledger,) = asked.work_dir.glob("*.run")
    with sqlite3.connect(ledger) as connection:
        connection.execute("DELETE FROM about")
    with pytest.raises(InvalidInput, match="damaged"):
        await take_back(asked, run)


@pytest.mark.parametrize(
    ("field", "planted", "value", "left"),
    [
        ("d1", FieldChange(0, 5, None), 5, None),
        ("d1", FieldChange(0, 5, None), 8, 3),
        ("d1", FieldChange(0, 5, None), 2, 2),  # it was reset, and used twice
        ("gh", FieldChange(900_000, 500_000, None), 1_400_000, None),
        ("gh", FieldChange(900_000, 500_000, 1_200_000), 1_700_000, 1_200_000),
        ("gh", FieldChange(900_000, 500_000, None), 1_600_000, 1_200_000),  # 200,000 from now on
        ("gh", FieldChange(900_000, 500_000, 1_200_000), 1_900_000, 1_400_000),
        ("gh", FieldChange(100_000, 500_000, None), 1_300_000, 1_300_000),  # it was full in between
    ],
)
def test_what_is_left_of_a_field(field: str, planted: FieldChange, value: int, left: int | None) -> None:
    assert remaining(field, planted, {field: value}, 1_000) == left


def test_what_was_given_back_of_a_field_was_the_runs() -> None:
    changes = {"d1": FieldChange(0, 5, None), "u261121": FieldChange(0, 5, None)}
    assert fields_after(changes, {"d1": 3, "u261121": 4}, 1_000) == {"d1": None, "u261121": None}
    assert fields_after(changes, {"d1": 3, "u261121": 8}, 1_000) == {"d1": 3, "u261121": 3}  # it was reset
    bucket = FieldChange(900_000_000, 500_000, None)
    changes = {"gh": bucket, "u261121": FieldChange(0, 5, None)}
    assert fields_after(changes, {"gh": 900_300_000, "u261121": 4}, 900_000)["gh"] is None
    assert fields_after(changes, {"gh": 900_300_000, "u261121": 5}, 900_000)["gh"] == 900_300_000  # it was reset
