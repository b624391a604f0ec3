"""A run: from every source, idempotent, resumable, with the counters of those who used something since midnight."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

from ratelimit import Directory, Identity, Limiter, Plan, Policy, User
from ratelimit.clock import DAY, SystemClock
from ratelimit.dynamodb import DynamoDBStore, parse_url
from ratelimit.factory import build_store
from ratelimit.migrate import Done, Mapping, SourceUnavailable, dry_run
from ratelimit.migrate.convert import Converter
from ratelimit.migrate.plan import source_of
from ratelimit.migrate.runner import MigrationRun
from ratelimit.migrate.sql import SqlSource, with_driver
from ratelimit.migrate.tally import MARK
from ratelimit.names import Key
from ratelimit.store import MirrorStore
from ratelimit.store.hashed import UserHash
from tests.engines import Engine
from tests.migrate.legacy_table import fill
from tests.migrate.plans import bring, check, events_in, plan_of, record_in, unheard
from tests.migrate.sources import earlier_items, to_json, to_jsonl, to_sql, to_sqlite
from tests.migrate.world import World

WORLD = World(users=12, rows=60)


@pytest.fixture
def source(request: pytest.FixtureRequest, engine: Engine, tmp_path: Path, database: Callable[[str], str]) -> str:
    kind: str = request.param
    if kind == "earlier":
        return asyncio.run(fill(engine.store_url(f"earlier-{uuid4().hex[:8]}"), earlier_items(WORLD)))
    if kind in ("mariadb", "postgresql"):
        return to_sql(WORLD, database(kind))
    if kind == "sqlite":
        return to_sqlite(WORLD, tmp_path / "app.db")
    return to_json(WORLD, tmp_path / "dump.json") if kind == "json" else to_jsonl(WORLD, tmp_path / "dump")


KINDS = ["sqlite", "mariadb", "postgresql", "json", "jsonl", "earlier"]


@pytest.mark.parametrize("source", KINDS, indirect=True)
async def test_all_of_it_is_there_once_and_stays_so(source: str, table: str, tmp_path: Path) -> None:
    asked = plan_of(source, table, tmp_path, batch_size=7)
    first = await bring(asked)
    assert _outcomes(first, "written") == {"plans": 3, "users": 12, "events": 60, "counters": len(_used())}
    assert (await check(asked)).same
    again = await bring(asked)
    assert _outcomes(again, "written") == {"plans": 0, "users": 0, "events": 0, "counters": 0}
    assert _outcomes(again, "there") == _outcomes(first, "written")
    assert again.checkpoint.units == 0
    assert (await check(asked)).same
    assert len(await events_in(table)) == 60


async def test_nobodys_quota_starts_afresh(table: str, tmp_path: Path) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    rows = [
        {"id": n, "user_id": 7, "action": "hint", "created_at": (now - timedelta(seconds=1 + n)).isoformat()}
        for n in range(4)
    ]
    asked = plan_of(_json(tmp_path, usage_log=rows), table, tmp_path)
    await bring(asked)
    since_midnight = sum(1 for row in rows if datetime.fromisoformat(str(row["created_at"])).date() == now.date())
    async with Limiter(DynamoDBStore(parse_url(table)), [Policy("hint", "4/day")]) as limiter:
        decision = await limiter.peek("7", "hint")
        assert decision.quotas[0].used == since_midnight
        totals = await limiter.totals("7")
    assert sum(totals["hint"].values()) == 4


def before_any_run_from_now() -> str:
    """A run leaves what is of its own millisecond to the next one."""
    return (datetime.now(UTC) - timedelta(milliseconds=1)).isoformat()


async def test_a_later_run_adds_what_came_since(table: str, tmp_path: Path) -> None:
    rows = [{"id": 1, "user_id": 7, "action": "hint", "created_at": before_any_run_from_now()}]
    path = _json(tmp_path, usage_log=rows)
    await bring(plan_of(path, table, tmp_path))
    async with Limiter(DynamoDBStore(parse_url(table)), [Policy("hint", "9/day")]) as limiter:
        await limiter.check("7", "hint")  # the table is in use meanwhile
    later = before_any_run_from_now()
    rows += [{"id": n, "user_id": 7, "action": "hint", "created_at": later} for n in (2, 3)]
    for _ in range(2):
        await bring(plan_of(_json(tmp_path, usage_log=rows), table, tmp_path))
        record = await record_in(table, "7", "hint")
        days = {field: value for field, value in record.items() if field[0] == "d"}
        assert sum(days.values()) == 4, record
    assert len(await events_in(table)) == 3


async def test_an_interrupted_run_goes_on_where_it_stopped(
    table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = plan_of(to_sqlite(WORLD, tmp_path / "app.db"), table, tmp_path, batch_size=7)
    taken = 0
    take = MigrationRun._take

    async def interrupted(self: MigrationRun, entity: Any, rows: Any, counts: Any) -> None:
        nonlocal taken
        taken += len(rows)
        await take(self, entity, rows, counts)
        if taken == 3 + 12 + 28:
            raise KeyboardInterrupt  # after the write, before the checkpoint

    monkeypatch.setattr(MigrationRun, "_take", interrupted)
    with pytest.raises(KeyboardInterrupt):
        await bring(asked)
    monkeypatch.undo()
    (saved,) = (tmp_path / "work").glob("*.checkpoint")
    assert json.loads(saved.read_text())["done"] == ["plans", "users"]
    done = await bring(asked)
    assert (done.checkpoint.of("events").written, done.checkpoint.of("events").there) == (60 - 7, 7)
    assert not saved.exists()
    assert (await check(asked)).same


@pytest.mark.parametrize("kind", ["mariadb", "postgresql"])
async def test_a_database_that_goes_away(
    kind: str, table: str, tmp_path: Path, database: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connections are cut between two pages: the run does not even notice. A server that is gone ends it."""
    url = to_sql(WORLD, database(kind))
    source = source_of(plan_of(url, table, tmp_path), SystemClock())
    assert isinstance(source, SqlSource)
    await source.open()
    pages = source.batches("users", after=None, size=5)
    first = await anext(pages)
    _cut_connections(url)
    rest = [row async for batch in pages for row in batch.rows]
    assert len(first.rows) + len(rest) == 12
    await source.close()
    monkeypatch.setattr("ratelimit.retry.STORE_ATTEMPTS", 2)
    gone = url.rpartition("@")[0] + "@127.0.0.1:9/" + url.rpartition("/")[2]
    with pytest.raises(SourceUnavailable, match="cannot be read"):
        await SqlSource(gone, Converter(Mapping(), clock=SystemClock())).open()


@pytest.mark.slow
async def test_from_another_table_of_this_project(engine: Engine, table: str, tmp_path: Path) -> None:
    old = engine.store_url(f"old-{uuid4().hex[:8]}", create="true")
    policies = [Policy("hint", "9/day"), Policy("search", "60/hour", algorithm="gcra")]
    async with Limiter(DynamoDBStore(parse_url(old)), policies) as limiter:
        directory = Directory(limiter.store.directory)  # type: ignore[attr-defined]
        await directory.put_plan(Plan("pro", {"hint": "50/day"}))
        await directory.put_user(User("alice", plan="pro", identities=[Identity.email("a@example.com")]))
        for _ in range(3):
            await limiter.check("alice", "hint")
            await limiter.check("alice", "search")
    asked = plan_of(old, table, tmp_path)
    for written in (1, 0):
        done = await bring(asked)
        assert _outcomes(done, "written") == {"plans": written, "users": written, "events": 0, "counters": 2 * written}
    assert (await check(asked)).same
    for action in ("hint", "search"):
        before, after = await record_in(old, "alice", action), await record_in(table, "alice", action)
        assert {field: after[field] for field in before} == before


@pytest.mark.slow
async def test_counters_of_a_table_that_is_mirrored_are_not_counted_twice(
    engine: Engine, table: str, tmp_path: Path
) -> None:
    old = engine.store_url(f"old-{uuid4().hex[:8]}", create="true")
    policy = Policy("hint", "9/day")
    async with Limiter(DynamoDBStore(parse_url(old)), [policy]) as limiter:
        for _ in range(3):
            await limiter.check("alice", "hint")
    both = MirrorStore(DynamoDBStore(parse_url(old)), DynamoDBStore(parse_url(table)))
    async with Limiter(both, [policy]) as limiter:
        await limiter.check("alice", "hint")
        await both.settle()
        await bring(plan_of(old, table, tmp_path, entities=("counters",), mirrored=True))
        await limiter.check("alice", "hint")
        differences = [one for one in await both.compare(Key("alice", "hint")) if one.field != MARK]
    assert differences == []


@pytest.mark.slow
async def test_the_earlier_layout_says_what_it_cannot_know(engine: Engine, table: str, tmp_path: Path) -> None:
    midnight = int(datetime.now(UTC).timestamp()) * 1_000_000 // DAY * DAY // 1_000_000
    world = World(users=1, rows=0)
    items = [*earlier_items(world), *(_use("a#b", midnight - 90 + second) for second in (0, 1, 5, 7))]
    source = await fill(engine.store_url(f"earlier-{uuid4().hex[:8]}"), items)
    done = await bring(plan_of(source, table, tmp_path))
    assert any(note.startswith("2 seconds are suspicious") for note in done.notes), done.notes
    assert any("1 items USER#… / CONV" in note for note in done.notes), done.notes
    assert Counter(event.user for event in await events_in(table)) == {"a#b": 4}


async def test_the_earlier_layouts_users_and_plans(engine: Engine, table: str, tmp_path: Path) -> None:
    def meta(pk: str, **data: Any) -> dict[str, Any]:
        return {"PK": {"S": pk}, "SK": {"S": "META"}, "dat": {"M": data}}

    inline = {"M": {"mhd": {"N": "-1"}}}
    items = [
        meta("PLAN#pro", mh={"N": "50"}, me={"N": "-1"}, nm={"S": "Pro"}),
        meta("USR#a#b", em={"S": "A@example.com"}, plan={"S": "pro"}, stf={"BOOL": True}),
        meta("USR#inline", pln=inline, act={"BOOL": False}, em={"NULL": True}),
        meta("USR#bad", em={"S": "nonsense"}),
    ]
    source = await fill(engine.store_url(f"earlier-{uuid4().hex[:8]}"), items)
    asked = plan_of(source, table, tmp_path, mapping={"actions": {"execution": "run"}})
    assert (await bring(asked)).checkpoint.of("users").rejected == 1
    async with DynamoDBStore(parse_url(table)) as store:
        read = store.directory.read
        assert await read(Plan, "pro") == Plan("pro", {"hint": "50/day", "run": "unlimited"})
        email = Identity.email("a@example.com")
        assert await read(User, "a#b") == User("a#b", plan="pro", role="admin", identities=[email])
        quotas = {"hint": "unlimited", "run": "10/day"}  # the default where the inline plan said nothing
        assert await read(User, "inline") == User("inline", quotas=quotas, active=False)


async def test_a_table_of_hashed_users_gets_nobodys_name(table: str, tmp_path: Path) -> None:
    secret = "a secret of some length"
    asked = plan_of(to_sqlite(World(users=2, rows=5), tmp_path / "app.db"), table, tmp_path)
    asked = replace(asked, config=replace(asked.config, user_hash_key=secret))
    for written in (5, 0):
        assert (await bring(asked)).checkpoint.of("events").written == written
    assert (await check(asked)).same
    assert {event.user for event in await events_in(table)} <= {UserHash(secret).of(user) for user in ("1", "2")}
    async with Limiter(build_store(asked.config), [Policy("hint", "500/day")]) as limiter:
        assert sum((await limiter.totals("1"))["hint"].values()) + sum((await limiter.totals("2"))["hint"].values()) > 0


async def test_a_dry_run_leaves_no_trace(table: str, tmp_path: Path) -> None:
    source = to_sqlite(WORLD, tmp_path / "app.db")
    before = {path.name for path in tmp_path.rglob("*")}
    forecast = await dry_run(plan_of(source, table, tmp_path), listener=unheard)
    assert {path.name for path in tmp_path.rglob("*")} == before
    assert await events_in(table) == []
    done = await bring(plan_of(source, table, tmp_path))
    assert forecast.write_units == done.checkpoint.units
    assert {name: each.written for name, each in forecast.counts.items()} == _outcomes(done, "written")


async def test_a_dry_run_of_counters_alone_says_what_they_take(table: str, tmp_path: Path) -> None:
    asked = plan_of(to_sqlite(WORLD, tmp_path / "app.db"), table, tmp_path, entities=("counters",))
    forecast = await dry_run(asked, listener=unheard)
    done = await bring(asked)
    assert forecast.write_units == done.checkpoint.units == len(_used())
    assert forecast.counts == done.checkpoint.counts
    assert forecast.samples == {}


def _outcomes(done: Done, name: str) -> dict[str, int]:
    return {entity: getattr(counts, name) for entity, counts in done.checkpoint.counts.items()}


def _used() -> set[tuple[int, str]]:
    return {(row["user_id"], row["action"]) for row in WORLD.all_rows()}


def _json(folder: Path, **sections: Any) -> Path:
    path = folder / "dump.json"
    path.write_text(json.dumps(sections), encoding="utf-8")
    return path


def _use(user: str, second: int) -> dict[str, Any]:
    day = datetime.fromtimestamp(second, UTC)
    return {
        "PK": {"S": f"USR#{user}#ULOG#{day:%Y%m%d}"}, "SK": {"S": f"ULOG#{second}#hint"}, "tp": {"S": "ulog"},
        "dat": {"M": {"act": {"S": "hint"}, "plat": {"S": "web"}}}, "crt": {"N": str(second)},
    }  # fmt: skip


def _cut_connections(url: str) -> None:
    """Those of others to this database."""
    engine = sa.create_engine(with_driver(url), isolation_level="AUTOCOMMIT")
    name = url.rpartition("/")[2]
    others = {
        "mysql": f"SELECT id FROM information_schema.processlist WHERE db = '{name}' AND id <> connection_id()",
        "postgresql": f"SELECT pid FROM pg_stat_activity WHERE datname = '{name}' AND pid <> pg_backend_pid()",
    }
    cut = {"mysql": "KILL {}", "postgresql": "SELECT pg_terminate_backend({})"}
    with engine.connect() as connection:
        for (number,) in connection.exec_driver_sql(others[engine.dialect.name]).all():
            connection.exec_driver_sql(cut[engine.dialect.name].format(number))
    engine.dispose()
