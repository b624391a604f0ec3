"""A `World` in every form that a migration may start from."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from ratelimit.migrate.sql import with_driver
from tests.migrate.world import PLANS, World

T = TypeVar("T")

TABLES = {
    "subscription_plan": (
        "id INTEGER PRIMARY KEY, name VARCHAR(50), max_hints_per_day INTEGER, max_executions_per_day INTEGER, "
        "is_active SMALLINT"
    ),
    "user": (
        "id INTEGER PRIMARY KEY, email VARCHAR(100), name VARCHAR(100), subscription_plan_id INTEGER, "
        "is_active SMALLINT, is_staff SMALLINT"
    ),
    "usage_log": (
        "id INTEGER PRIMARY KEY, user_id INTEGER, action VARCHAR(50), problem_id INTEGER, metadata {json}, "
        "created_at {time}"
    ),
    "session": "id INTEGER PRIMARY KEY, data VARCHAR(100)",
}


def rows_of(world: World) -> dict[str, Iterator[dict[str, Any]]]:
    return {"subscription_plan": iter(PLANS), "user": world.all_users(), "usage_log": world.all_rows()}


def to_sqlite(world: World, path: Path) -> str:
    connection = sqlite3.connect(path)
    with connection:
        for table, columns in TABLES.items():
            connection.execute(f'CREATE TABLE "{table}" ({columns.format(json="TEXT", time="DATETIME")})')
        for table, rows in rows_of(world).items():
            for row in rows:
                values = [_naive(value) for value in row.values()]
                connection.execute(f'INSERT INTO "{table}" VALUES ({", ".join("?" * len(values))})', values)
    connection.close()
    return f"sqlite:///{path}"


def to_sql(world: World, url: str) -> str:
    """MariaDB or PostgreSQL, through SQLAlchemy."""
    engine = sa.create_engine(with_driver(url))
    is_mysql = engine.dialect.name in ("mysql", "mariadb")
    quote = "`" if is_mysql else '"'
    kinds = {"json": "JSON", "time": "DATETIME" if is_mysql else "TIMESTAMPTZ"}
    with engine.begin() as connection:
        for table, columns in TABLES.items():
            connection.exec_driver_sql(f"CREATE TABLE {quote}{table}{quote} ({columns.format(**kinds)})")
        for table, rows in rows_of(world).items():
            for several in chunks(rows, 2000):
                names = list(several[0])
                marks = ", ".join(f":{name}" for name in names)
                made = [{name: _naive(row[name], aware=not is_mysql) for name in names} for row in several]
                connection.execute(sa.text(f"INSERT INTO {quote}{table}{quote} VALUES ({marks})"), made)
    engine.dispose()
    return url


def to_jsonl(world: World, folder: Path) -> str:
    """A folder: plans as a list, users as an object keyed by id, uses as lines."""
    folder.mkdir()
    (folder / "subscription_plan.json").write_text(json.dumps(list(PLANS)))
    (folder / "users.json").write_text(json.dumps({str(row.pop("id")): row for row in world.all_users()}, indent=1))
    with (folder / "usage_log.jsonl").open("w", encoding="utf-8") as file:
        for row in world.all_rows():
            file.write(json.dumps(row, default=lambda time: time.isoformat()) + "\n")
    return str(folder)


def to_json(world: World, path: Path) -> str:
    """One document with a section for each table."""
    with path.open("w", encoding="utf-8") as file:
        file.write('{"subscription_plan": ' + json.dumps(list(PLANS)) + ', "user": ')
        file.write(json.dumps({str(row.pop("id")): row for row in world.all_users()}))
        file.write(', "session": [{"a": 1}], "usage_log": [')
        for number, row in enumerate(world.all_rows()):
            file.write(("," if number else "") + json.dumps(row, default=lambda time: time.timestamp()))
        file.write("]}")
    return str(path)


def earlier_items(world: World) -> Iterator[dict[str, Any]]:
    """The earlier single-table layout, in wire form; every tenth user is known by e-mail in its usage rows."""
    for plan in PLANS:
        limits = {"mh": _n(plan["max_hints_per_day"]), "me": _n(plan["max_executions_per_day"])}
        yield _item(f"PLAN#{plan['id']}", "META", "plan", {"nm": _s(plan["name"]), **limits}, 1_700_000_000)
    for user in world.all_users():
        yield _item(f"USR#{user['id']}", "META", "usr", _earlier_user(user), 1_700_000_000)
    for row in world.all_rows():
        second = int(row["created_at"].timestamp())
        key = f"EMAIL#user{row['user_id']}@example.com" if row["user_id"] % 10 == 0 else f"USR#{row['user_id']}"
        sk = f"ULOG#{second}#{row['action']}"
        yield _item(f"{key}#ULOG#{row['created_at']:%Y%m%d}", sk, "ulog", _earlier_use(row), second)
    yield _item("USER#7", "CONV#1", "conv", {"text": _s("hello")}, 1_700_000_000)


def _earlier_user(user: dict[str, Any]) -> dict[str, Any]:
    data: dict[str, Any] = {"em": _s(user["email"]), "nm": _s(user["name"])}
    data |= {"act": {"BOOL": bool(user["is_active"])}, "stf": {"BOOL": bool(user["is_staff"])}}
    if user["subscription_plan_id"] is not None:
        data["plan"] = _s(str(user["subscription_plan_id"]))
    return data


def _earlier_use(row: dict[str, Any]) -> dict[str, Any]:
    data: dict[str, Any] = {"act": _s(row["action"])}
    if row["problem_id"] is not None:
        data["pid"] = _s(f"problem-{row['problem_id']}")
    if row["metadata"] is not None:
        data["met"] = {"M": {"difficulty": _n(3)}}
    return data


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _item(pk: str, sk: str, kind: str, data: dict[str, Any], created: int) -> dict[str, Any]:
    return {"PK": _s(pk), "SK": _s(sk), "tp": _s(kind), "dat": {"M": data}, "crt": _n(created)}


def _s(text: str) -> dict[str, str]:
    return {"S": text}


def _n(number: int) -> dict[str, str]:
    return {"N": str(number)}


def _naive(value: Any, *, aware: bool = False) -> Any:
    """As databases hold it: MySQL's DATETIME knows no zone."""
    if not hasattr(value, "isoformat") or aware:
        return value
    return value.replace(tzinfo=None).isoformat(sep=" ")
