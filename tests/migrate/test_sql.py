"""A database is read whole, whatever its keys are, and a run that was interrupted goes on behind the last of them."""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID

import pytest
import sqlalchemy as sa

from ratelimit.errors import InvalidInput
from ratelimit.migrate import Counts, Entity, dry_run, run
from ratelimit.migrate.rows import SourceRefused
from ratelimit.migrate.sql import open_engine, place_of, placed, with_driver
from tests.migrate.plans import bring, check, events_in, plan_of, unheard

ROWS = 30
DICE = random.Random(4711)
START = datetime(2026, 3, 29, tzinfo=UTC)
INTEGERS: list[Any] = list(range(1, ROWS + 1))
DECIMALS: list[Any] = [Decimal(n) / 4 + 10**17 for n in range(ROWS)]
BYTES: list[Any] = [DICE.randbytes(16) for _ in range(ROWS)]
UUIDS: list[Any] = [UUID(int=DICE.getrandbits(128), version=4) for _ in range(ROWS)]
TEXTS: list[Any] = [str(one) for one in UUIDS]
TIMES: list[Any] = [START + timedelta(minutes=10 * n, microseconds=n) for n in range(ROWS)]  # across a change of clocks
NAIVE: list[Any] = [time.replace(tzinfo=None) for time in TIMES]
DAYS: list[Any] = [START.date() + timedelta(days=n) for n in range(ROWS)]
FLOATS: list[Any] = [n / 10 for n in range(ROWS)]

KEYS = [
    ("sqlite", "INTEGER", INTEGERS), ("sqlite", "BLOB", BYTES), ("sqlite", "TEXT", TEXTS), ("sqlite", "REAL", FLOATS),
    ("mariadb", "BIGINT UNSIGNED", INTEGERS), ("mariadb", "BINARY(16)", BYTES), ("mariadb", "VARCHAR(40)", TEXTS),
    ("mariadb", "DECIMAL(20, 2)", DECIMALS), ("mariadb", "DATETIME(6)", NAIVE), ("mariadb", "DATE", DAYS),
    ("mariadb", "UUID", TEXTS), ("mariadb", "FLOAT", FLOATS),
    ("mariadb", "ENUM('c', 'a', 'b')", ["a", "b", "c"]),
    ("postgresql", "BIGINT", INTEGERS), ("postgresql", "NUMERIC", DECIMALS), ("postgresql", "BYTEA", BYTES),
    ("postgresql", "UUID", UUIDS), ("postgresql", "TEXT", TEXTS), ("postgresql", "TIMESTAMPTZ", TIMES),
    ("postgresql", "TIMESTAMP", NAIVE), ("postgresql", "DATE", DAYS), ("postgresql", "REAL", FLOATS),
    ("postgresql", "CHAR(40)", TEXTS),
]  # fmt: skip


class Interrupted(Exception):
    """By the test."""


def at(number: int) -> datetime:
    return (datetime.now(UTC) - timedelta(minutes=number + 1)).replace(microsecond=0, tzinfo=None)


def fill(url: str, columns: str, rows: list[dict[str, Any]]) -> None:
    engine = sa.create_engine(with_driver(url))
    names = ", ".join(f":{name}" for name in rows[0])
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE TABLE usage_log ({columns})")
        connection.execute(sa.text(f"INSERT INTO usage_log ({', '.join(rows[0])}) VALUES ({names})"), rows)
    engine.dispose()


async def interrupted(asked: Any, batches: int) -> None:
    heard = 0

    def listener(entity: Entity, counts: Counts, done: int, size: int | None) -> None:
        nonlocal heard
        heard += 1
        if heard > batches:
            raise Interrupted

    with pytest.raises(Interrupted):
        await run(asked, listener=listener)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "column", "keys"), KEYS, ids=lambda value: value if type(value) is str else "")
async def test_an_interrupted_run_goes_on_behind_the_last_key(
    kind: str, column: str, keys: list[Any], table: str, tmp_path: Path, database: Callable[[str], str]
) -> None:
    url = database(kind)
    of_time = "TEXT" if kind == "sqlite" else "TIMESTAMP NULL"
    rows = [
        {"id": key, "user_id": f"u{n % 5}", "action": "hint", "created_at": str(at(n))} for n, key in enumerate(keys)
    ]
    fill(url, f"id {column} NOT NULL PRIMARY KEY, user_id VARCHAR(9), action VARCHAR(9), created_at {of_time}", rows)
    size = len(keys) // 3
    asked = plan_of(url, table, tmp_path, batch_size=size)
    await interrupted(asked, 1)
    done = await bring(asked)
    counts = done.checkpoint.of("events")
    assert (counts.read, counts.written + counts.there, counts.rejected) == (len(keys), len(keys), 0)
    assert len(await events_in(table)) == len(keys)
    assert (await check(asked)).same


@pytest.mark.parametrize("key", [7, 0.1, "a", b"\xff", Decimal("0.10"), UUIDS[0], TIMES[3], NAIVE[3], DAYS[3]])
def test_a_place_keeps_the_type_of_the_key(key: object) -> None:
    found, done = placed(place_of(key, 5))
    assert (found, type(found), done) == (key, type(key), 5)


@pytest.mark.parametrize("place", ["20", "[7, 20]", '["None", null, 20]', '["UUID", "x", 20]', "{"])
def test_a_place_of_another_kind(place: str) -> None:
    with pytest.raises(InvalidInput, match="begin anew with --restart"):
        placed(place)


def test_a_key_that_is_no_text() -> None:
    with pytest.raises(SourceRefused, match="is not UTF-8"):
        place_of("\udcff", 1)


@pytest.mark.parametrize("left", [0, 5])
async def test_keys_that_are_null_do_not_go_round(
    left: int, table: str, tmp_path: Path, database: Callable[[str], str]
) -> None:
    """SQLite lets a primary key be null, in many rows."""
    url = database("sqlite")
    rows = [
        {"id": None if n >= left else f"k{n}", "user_id": f"u{n}", "action": "hint", "created_at": str(at(n))}
        for n in range(12)
    ]
    fill(url, "id TEXT PRIMARY KEY, user_id TEXT, action TEXT, created_at TEXT", rows)
    asked = plan_of(url, table, tmp_path, batch_size=5)
    forecast = await dry_run(asked, listener=unheard)
    for counts in (forecast.counts["events"], (await bring(asked)).checkpoint.of("events")):
        assert (counts.read, counts.written) == (12, 12)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_a_key_that_is_unique_among_some_rows_only(
    kind: str, table: str, tmp_path: Path, database: Callable[[str], str]
) -> None:
    url = database(kind)
    rows = [
        {"pk": n, "id": f"k{n // 4}", "user_id": f"u{n}", "action": "hint", "created_at": str(at(n)), "deleted": 1}
        for n in range(20)
    ]
    fill(url, "pk INT PRIMARY KEY, id TEXT NOT NULL, user_id TEXT, action TEXT, created_at TEXT, deleted INT", rows)
    engine = sa.create_engine(with_driver(url))
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE UNIQUE INDEX undeleted ON usage_log (id) WHERE deleted = 0")
    engine.dispose()
    assert (await bring(plan_of(url, table, tmp_path, batch_size=5))).checkpoint.of("events").written == 20


_ROWS = (
    "SELECT mod(n, 10), 'u' || mod(n, 3), 'hint', '{}'::JSON, now() - n * INTERVAL '1 min' "
    "FROM generate_series(1, 20) AS n"
)
_COLUMNS = "id INT, user_id TEXT, action TEXT, metadata JSON, created_at TIMESTAMPTZ"


@pytest.mark.parametrize("kind", ["postgresql"])
@pytest.mark.parametrize(
    "statements",
    [
        # JSON has no order there.
        [f"CREATE TABLE usage_log ({_COLUMNS}, PRIMARY KEY (id, created_at))", f"INSERT INTO usage_log {_ROWS}"],
        # An heir has ids of its own, and is read with the table.
        [
            f"CREATE TABLE usage_log ({_COLUMNS}, PRIMARY KEY (id))", "CREATE TABLE archive () INHERITS (usage_log)",
            f"INSERT INTO usage_log {_ROWS} WHERE n <= 10", f"INSERT INTO archive {_ROWS} WHERE n > 10",
        ],
        [f"CREATE MATERIALIZED VIEW usage_log (id, user_id, action, metadata, created_at) AS {_ROWS}"],
    ],
    ids=["composite key", "heir", "materialized view"],
)  # fmt: skip
async def test_tables_of_all_kinds(
    kind: str, statements: list[str], table: str, tmp_path: Path, database: Callable[[str], str]
) -> None:
    url = database(kind)
    engine = sa.create_engine(with_driver(url))
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()
    asked = plan_of(url, table, tmp_path, batch_size=3)
    assert (await bring(asked)).checkpoint.of("events").written == 20
    assert (await check(asked)).same


async def test_without_a_key_an_interrupted_run_begins_anew(
    table: str, tmp_path: Path, database: Callable[[str], str]
) -> None:
    """Rows that went away meanwhile would move what is skipped; counts and rejects are those of the last time."""
    url = database("sqlite")
    rows = [{"user_id": f"u{n % 5}" if n % 6 else "", "action": "hint", "created_at": str(at(n))} for n in range(60)]
    fill(url, "user_id TEXT, action TEXT, created_at TEXT", rows)
    asked = plan_of(url, table, tmp_path, batch_size=20, entities=("events",))
    await interrupted(asked, 2)
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        oldest = "SELECT created_at FROM usage_log ORDER BY created_at LIMIT 12"
        connection.exec_driver_sql(f"DELETE FROM usage_log WHERE created_at IN ({oldest})")
    engine.dispose()
    done = await bring(asked)
    counts = done.checkpoint.of("events")
    assert (counts.read, counts.rejected, counts.written + counts.there) == (48, 8, 40)
    assert done.rejects is not None
    assert len(Path(done.rejects).read_text().splitlines()) == 8
    assert len(await events_in(table)) == 50


@pytest.mark.parametrize("kind", ["postgresql"])
@pytest.mark.parametrize("setting", ["idle_in_transaction_session_timeout", "statement_timeout"])
async def test_a_database_waits_as_long_as_the_writing_takes(
    kind: str, setting: str, table: str, tmp_path: Path, database: Callable[[str], str]
) -> None:
    url = database(kind)
    fill(url, "user_id TEXT, action TEXT, created_at TEXT", [
        {"user_id": f"u{n}", "action": "hint", "created_at": str(at(n))} for n in range(60)
    ])  # fmt: skip
    limit = 200 if setting.startswith("idle") else 1
    asked = plan_of(
        f"{url}?options=-c{setting}%3D{limit}", table, tmp_path, batch_size=20, rate=50, entities=("events",)
    )
    assert (await bring(asked)).checkpoint.of("events").written == 60


@pytest.mark.parametrize("kind", ["postgresql"])
def test_nothing_is_left_in_a_session_that_a_pooler_hands_on(kind: str, database: Callable[[str], str]) -> None:
    engine = open_engine(sa, database(kind))
    for _ in range(10):
        with engine.connect() as connection:
            assert connection.exec_driver_sql("SHOW transaction_read_only").scalar() == "on"
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SHOW default_transaction_read_only").scalar() == "off"
        assert connection.exec_driver_sql("SELECT count(*) FROM pg_prepared_statements").scalar() == 0
    engine.dispose()


@pytest.mark.parametrize("name", ["a#b.db", "what?.db", "50%25.db", "a b.db", "c&d=e.db"])
@pytest.mark.parametrize("is_url", [False, True])
async def test_the_name_of_a_file_is_just_a_name(name: str, is_url: bool, table: str, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    with closing(sqlite3.connect(folder / name)) as connection, connection:
        columns = "id INTEGER PRIMARY KEY, user_id TEXT, action TEXT, created_at TEXT"
        connection.execute(f"CREATE TABLE usage_log ({columns})")
        connection.execute("INSERT INTO usage_log VALUES (1, 'u', 'hint', ?)", (str(at(1)),))
    asked = plan_of(f"sqlite:///{folder}/{quote(name)}" if is_url else folder / name, table, tmp_path)
    assert (await dry_run(asked, listener=unheard)).counts["events"].written == 1
    assert os.listdir(folder) == [name]
    assert (await bring(asked)).checkpoint.of("events").written == 1
    assert len(os.listdir(folder)) == 2  # it, and its copy
    (copy,) = folder.glob("*.backup-*")
    assert copy.read_bytes()[:15] == b"SQLite format 3"
