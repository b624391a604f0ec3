"""What cannot be used is set aside with its reason, and nothing else suffers from it."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

from ratelimit import ConfigError, InvalidInput, Policy, TableMismatch, TableNotFound, User
from ratelimit.dynamodb import DynamoDBStore, parse_url
from ratelimit.migrate import BadRow, SourceRefused, dry_run
from ratelimit.migrate.mapping import mapping_of
from ratelimit.migrate.sql import with_driver
from tests.engines import Engine
from tests.migrate.legacy_table import fill
from tests.migrate.plans import bring, check, events_in, plan_of, record_in, unheard
from tests.migrate.sources import to_sql
from tests.migrate.world import World

NOW = datetime.now(UTC).replace(microsecond=0)
HINT = (Policy("hint", "5/day"), Policy("execution", "10/day"))


def row(**changes: Any) -> dict[str, Any]:
    return {"id": uuid4().hex, "user_id": 7, "action": "hint", "created_at": NOW.isoformat(), **changes}


def dump(folder: Path, **sections: Any) -> Path:
    path = folder / "dump.json"
    path.write_text(json.dumps(sections), encoding="utf-8")
    return path


async def test_each_bad_row_is_named_and_the_rest_is_there(table: str, tmp_path: Path) -> None:
    bad = [
        (row(user_id=None), "user is missing"),
        (row(action=None), "action is missing"),
        (row(created_at=None), "time is missing"),
        (row(created_at="soon"), "time 'soon' cannot be read"),
        (row(created_at=(NOW + timedelta(days=2)).isoformat()), "in the future"),
        (row(action="fly"), "unknown action 'fly'"),
        (row(user_id="x" * 300), "takes 300 bytes"),
        (row(user_id="tab\there"), "control character"),
        (row(cost="many"), "cost must be a whole number"),
        (row(status=7), "status must be an HTTP status"),
    ]
    good = [row(), row(metadata="no JSON"), row(user_id="a#b%c"), row(problem_id=None, cost=3)]
    path = dump(tmp_path, usage_log=[*(one for one, _ in bad), "text", *good])
    asked = plan_of(path, table, tmp_path, policies=HINT, leave_rejected=True)
    done = await bring(asked)
    counts = done.checkpoint.of("events")
    assert (counts.read, counts.written, counts.rejected) == (15, 4, 11)
    assert sum(counts.reasons.values()) == 11
    assert counts.reasons["unknown action 'fly'"] == 1
    assert done.rejects is not None
    kept = [json.loads(line) for line in Path(done.rejects).read_text().splitlines()]
    assert [one["entity"] for one in kept] == ["events"] * 11
    for (source, reason), one in zip(bad, kept, strict=False):
        assert reason in one["reason"]
        assert json.loads(one["text"]) == source
    assert kept[-1]["reason"] == "is no JSON object"
    assert {event.user for event in await events_in(table)} == {"7", "a#b%c"}
    assert sum(v for f, v in (await record_in(table, "7", "hint")).items() if f[0] == "d") in (0, 5)  # 0 past midnight
    assert (await check(asked)).same


async def test_unknown_actions_may_be_taken_and_old_names_changed(table: str, tmp_path: Path) -> None:
    path = dump(tmp_path, usage_log=[row(action="fly"), row(action="execute")])
    mapping = {"actions": {"execute": "execution"}}
    done = await bring(plan_of(path, table, tmp_path, policies=HINT, any_action=True, mapping=mapping))
    assert done.checkpoint.of("events").written == 2
    assert sorted(event.action for event in await events_in(table)) == ["execution", "fly"]


async def test_the_first_bad_row_may_end_it(table: str, tmp_path: Path) -> None:
    asked = plan_of(dump(tmp_path, usage_log=[row(user_id=None)]), table, tmp_path, on_error="stop")
    with pytest.raises(BadRow, match=r"dump.json usage_log \[1\]: user is missing"):
        await bring(asked)


async def test_rows_that_come_twice_are_once(table: str, tmp_path: Path) -> None:
    """The same id with the same use is the same row; rows without an id that say the same are several uses."""
    twice, anonymous = row(), {key: value for key, value in row().items() if key != "id"}
    path = dump(tmp_path, usage_log=[twice, twice, anonymous, anonymous, {**anonymous, "problem_id": 5}])
    for written in (4, 0):
        done = await bring(plan_of(path, table, tmp_path, batch_size=1))
        assert done.checkpoint.of("events").written == written
    assert len(await events_in(table)) == 4
    assert (await check(plan_of(path, table, tmp_path))).same


async def test_three_formats_and_zones_of_time_are_one_moment(table: str, tmp_path: Path) -> None:
    east = NOW.astimezone(tz=None).isoformat()
    local = (NOW + timedelta(hours=1)).strftime("%Y-%m-%d %H:%M:%S")
    times = [NOW.isoformat(), east, int(NOW.timestamp()), local]
    path = dump(tmp_path, usage_log=[row(created_at=time, user_id=n) for n, time in enumerate(times)])
    mapping = {"events": {"timezone": "Etc/GMT-1"}}
    await bring(plan_of(path, table, tmp_path, mapping=mapping))
    assert {event.at for event in await events_in(table)} == {NOW}


async def test_events_that_are_too_old_are_counted_and_left_out(table: str, tmp_path: Path) -> None:
    old = NOW - timedelta(days=120)
    path = dump(tmp_path, usage_log=[row(created_at=old.isoformat()), row()])
    done = await bring(plan_of(path, table, tmp_path))
    assert (done.checkpoint.of("events").written, done.checkpoint.of("events").expired) == (1, 1)
    record = await record_in(table, "7", "hint")
    assert record[f"u{old:%y%m}"] == 1  # a month's total is kept for thirteen months


async def test_two_users_with_one_email(table: str, tmp_path: Path) -> None:
    users = [{"id": n, "email": "same@example.com"} for n in (1, 2)] + [{"id": 3, "email": "nonsense"}, {"id": None}]
    done = await bring(plan_of(dump(tmp_path, users=users), table, tmp_path))
    counts = done.checkpoint.of("users")
    assert (counts.written, counts.rejected) == (1, 3)


async def test_users_that_are_there_already_are_left_as_they_are(table: str, tmp_path: Path) -> None:
    async with DynamoDBStore(parse_url(table)) as store:
        await store.directory.replace(None, User("1", plan="mine"), now=1)
    done = await bring(plan_of(dump(tmp_path, users=[{"id": 1}, {"id": 2}]), table, tmp_path))
    assert (done.checkpoint.of("users").kept, done.checkpoint.of("users").written) == (1, 1)
    assert "the table is not empty: what is there already is left as it is" in done.notes
    async with DynamoDBStore(parse_url(table)) as store:
        assert await store.directory.read(User, "1") == User("1", plan="mine")


async def test_a_table_that_belongs_to_something_else(engine: Engine, tmp_path: Path) -> None:
    url = engine.store_url(f"foreign-{uuid4().hex[:8]}")
    await fill(url, [{"PK": {"S": "USER#1"}, "SK": {"S": "CONV#1"}}])
    path = dump(tmp_path, usage_log=[row()])
    with pytest.raises(InvalidInput, match=r"not this project's \(USER#1 / CONV#1\)"):
        await bring(plan_of(path, url, tmp_path))
    for foreign in (False, True):
        notes = (await dry_run(plan_of(path, url, tmp_path, foreign=foreign), listener=unheard)).notes
        assert any("would be refused" in note and "--into-foreign" in note for note in notes) is not foreign, notes
    assert (await bring(plan_of(path, url, tmp_path, foreign=True))).checkpoint.of("events").written == 1


async def test_a_table_that_is_not_there_or_the_source_itself(engine: Engine, table: str, tmp_path: Path) -> None:
    with pytest.raises(TableNotFound):
        await bring(plan_of(dump(tmp_path, usage_log=[row()]), engine.store_url("never-made"), tmp_path))
    with pytest.raises(InvalidInput, match="the same table"):
        await bring(plan_of(table.replace("dynamodb://", "earlier://"), table, tmp_path))


async def test_a_session_table_as_a_source(engine: Engine, table: str, tmp_path: Path) -> None:
    name = f"sessions-{uuid4().hex[:8]}"
    engine.call("CreateTable", {
        "TableName": name, "BillingMode": "PAY_PER_REQUEST",
        "AttributeDefinitions": [{"AttributeName": "sessionId", "AttributeType": "S"}],
        "KeySchema": [{"AttributeName": "sessionId", "KeyType": "HASH"}],
    })  # fmt: skip
    source = engine.store_url(name).replace("dynamodb://", "earlier://")
    with pytest.raises(TableMismatch, match="keyed by sessionId; a session table holds no usage"):
        await bring(plan_of(source, table, tmp_path))


async def test_a_source_that_is_not_there(table: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="there is no"):
        await bring(plan_of(tmp_path / "gone.json", table, tmp_path))
    with pytest.raises(SourceRefused, match="unable to open"):
        await bring(plan_of(f"sqlite:///{tmp_path}/gone.db", table, tmp_path))
    assert not (tmp_path / "gone.db").exists()
    with pytest.raises(ConfigError, match="cannot use nonsense://"):
        await bring(plan_of("nonsense://user:secret@host/db", table, tmp_path))


async def test_a_damaged_database_is_not_taken_for_one_that_is_away(table: str, tmp_path: Path) -> None:
    database = tmp_path / "app.db"
    with sqlite3.connect(database) as connection:
        connection.execute(
            "CREATE TABLE usage_log (id INTEGER PRIMARY KEY, user_id TEXT, action TEXT, created_at TEXT)"
        )
        rows = [(number, "u" * 200, "hint", "2026-01-05T00:00:00Z") for number in range(500)]
        connection.executemany("INSERT INTO usage_log VALUES (?, ?, ?, ?)", rows)
    connection.close()
    os.truncate(database, database.stat().st_size // 2)
    with pytest.raises(SourceRefused, match="malformed"):
        await bring(plan_of(database, table, tmp_path))


async def test_a_file_that_changed_is_read_anew(table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = plan_of(dump(tmp_path, usage_log=[row(id=1), row(id=2)]), table, tmp_path, batch_size=1)
    workspace = asked.workspace()
    from ratelimit.migrate.checkpoint import Checkpoint

    left = Checkpoint(began=int(NOW.timestamp() * 1_000_000) + 1, stamp="of another", entity="events", place="2")
    workspace.folder.mkdir()
    workspace.begin(left)
    workspace.close()
    assert (await bring(asked)).checkpoint.of("events").written == 2


async def test_the_files_are_backed_up_first(table: str, tmp_path: Path) -> None:
    path = dump(tmp_path, usage_log=[row()])
    database = tmp_path / "app.db"
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE usage_log (id INTEGER, user_id TEXT, action TEXT, created_at TEXT)")
        connection.execute("INSERT INTO usage_log VALUES (1, 'u', 'hint', '2026-01-05T00:00:00Z')")
    for source in (path, database):
        await bring(plan_of(source, table, tmp_path))
        (copy,) = tmp_path.glob(f"{source.name}.backup-*")
        assert copy.read_bytes()[:6] == source.read_bytes()[:6]
        await bring(plan_of(source, table, tmp_path, backup=False))
        assert len(list(tmp_path.glob(f"{source.name}.backup-*"))) == 1


@pytest.mark.parametrize("kind", ["mariadb", "postgresql"])
async def test_a_database_that_says_no(kind: str, table: str, tmp_path: Path, database: Callable[[str], str]) -> None:
    url = to_sql(World(users=2, rows=3), database(kind))
    user = f"reader_{uuid4().hex[:6]}"
    engine = sa.create_engine(with_driver(url), isolation_level="AUTOCOMMIT")
    quote = "`" if kind == "mariadb" else '"'
    with engine.connect() as connection:
        at = "@'127.0.0.1'" if kind == "mariadb" else ""
        connection.exec_driver_sql(f"CREATE USER {user}{at}")
        name = url.rpartition("/")[2]
        what = f"{name}.{quote}user{quote}" if kind == "mariadb" else f"{quote}user{quote}"
        connection.exec_driver_sql(f"GRANT SELECT ON {what} TO {user}{at}")
    engine.dispose()
    scheme, _, rest = url.partition("://")
    asked = plan_of(f"{scheme}://{user}@{rest.partition('@')[2]}", table, tmp_path, entities=("users", "events"))
    with pytest.raises(InvalidInput, match=r"refused|no events|denied"):
        await bring(asked)


@pytest.mark.parametrize("kind", ["sqlite", "mariadb", "postgresql"])
async def test_a_table_without_a_key_and_times_in_every_zone(
    kind: str, table: str, tmp_path: Path, database: Callable[[str], str]
) -> None:
    """Rows that say the same are several uses; reading again finds the same ones. Nothing can be written there."""
    url = database(kind)
    engine = sa.create_engine(with_driver(url))
    with engine.begin() as connection:
        time = "TIMESTAMP" if kind != "postgresql" else "TIMESTAMPTZ"
        connection.exec_driver_sql(
            f"CREATE TABLE usage_log (user_id VARCHAR(20), action VARCHAR(20), created_at {time})"
        )
        if kind == "mariadb":
            connection.exec_driver_sql("SET time_zone = '+00:00'")
        at = NOW.isoformat(sep=" ") if kind != "mariadb" else NOW.replace(tzinfo=None).isoformat(sep=" ")
        for user in ("a", "a", "b"):
            connection.execute(sa.text("INSERT INTO usage_log VALUES (:u, 'hint', :t)"), {"u": user, "t": at})
    engine.dispose()
    for written in (3, 0):
        done = await bring(plan_of(url, table, tmp_path, batch_size=2))
        assert done.checkpoint.of("events").written == written
    assert sorted((event.user, event.at) for event in await events_in(table)) == [("a", NOW), ("a", NOW), ("b", NOW)]
    assert (await check(plan_of(url, table, tmp_path))).same


@pytest.mark.parametrize("kind", ["sqlite", "mariadb", "postgresql"])
async def test_an_id_that_is_not_unique_loses_nothing(
    kind: str, table: str, tmp_path: Path, database: Callable[[str], str]
) -> None:
    """Read by it, a page would begin behind rows that the page before had left."""
    url = database(kind)
    engine = sa.create_engine(with_driver(url))
    with engine.begin() as connection:
        columns = "id INTEGER, user_id VARCHAR(20), action VARCHAR(20), created_at VARCHAR(40)"
        connection.exec_driver_sql(f"CREATE TABLE usage_log ({columns})")
        for user in ("a", "b", "c", "c"):
            values = {"u": user, "t": NOW.isoformat()}
            connection.execute(sa.text("INSERT INTO usage_log VALUES (7, :u, 'hint', :t)"), values)
    engine.dispose()
    done = await bring(plan_of(url, table, tmp_path, batch_size=1))
    assert (done.checkpoint.of("events").written, done.checkpoint.of("events").there) == (3, 1)
    assert done.checkpoint.of("counters").written == 3
    assert (await check(plan_of(url, table, tmp_path))).same


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"event": {}}, "did you mean 'events'"),
        ({"events": {"usr": "x"}}, "events.usr: unknown name; did you mean 'user'"),
        ({"events": {"timezone": "Mars"}}, "events.timezone"),
        ({"plans": {"quotas": {"hint": "mh/fortnight"}}}, "plans.quotas.hint"),
        ({"plans": {"quotas": {"hint": "mh"}}}, "plans.quotas.hint"),
        ({"actions": {"a": ""}}, "actions.a"),
        ({"users": {"id": 7}}, "users.id: expected a name"),
        ({"users": {"uuids": "dash"}}, "users.uuids: expected 'plain' or 'dashed'"),
        ({"users": 7}, "users: expected a table"),
    ],
)
def test_a_mapping_that_makes_no_sense(table: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        mapping_of(table)
    assert told in str(error.value)
