"""Nothing ends well over nothing: what is not recognised is told, with what was seen; and what people bring is read."""

from __future__ import annotations

import asyncio
import gzip
import json
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from ratelimit.dynamodb import create_table, parse_url
from ratelimit.errors import InvalidInput
from ratelimit.migrate import dry_run
from tests.engines import Engine
from tests.migrate.legacy_table import fill
from tests.migrate.plans import bring, check, events_in, plan_of, record_in, unheard

NOW = datetime.now(UTC).replace(microsecond=0)
AT = (NOW - timedelta(hours=1)).replace(tzinfo=None).isoformat(" ")
USE = {"id": 1, "user_id": "7", "action": "hint", "created_at": AT + "Z"}
USES = "id INTEGER PRIMARY KEY, user_id TEXT, action TEXT, created_at TEXT"


def database(folder: Path, **tables: str) -> str:
    """`usage_log="columns"`: a table with one row for each user of `ab`."""
    path = folder / f"{uuid4().hex[:6]}.db"
    with sqlite3.connect(path) as connection:
        for name, columns in tables.items():
            connection.execute(f'CREATE TABLE "{name}" ({columns})')
            named = [column.split()[0] for column in columns.split(", ")]
            known: dict[str, Any] = {"action": "hint", "created_at": AT, "max_hints_per_day": 5, "units": 5, "plan": 1}
            for number, user in enumerate("ab", 1):
                values = [known.get(name, user if name.startswith("user") else number) for name in named]
                connection.execute(f'INSERT INTO "{name}" VALUES ({", ".join("?" * len(values))})', values)
    connection.close()
    return f"sqlite:///{path}"


@pytest.fixture(scope="module")
def empty(engine: Engine) -> str:
    """The store URL of a table for those that are refused, and write nothing: it stays empty."""
    url = engine.store_url(f"empty-{uuid4().hex[:8]}")
    asyncio.run(create_table(parse_url(url)))
    return url


async def refused(source: object, table: str, folder: Path, *told: str, **options: Any) -> None:
    """By a dry run, a run and a verification alike."""
    asked = plan_of(str(source), table, folder, **options)
    for work in (lambda: dry_run(asked, listener=unheard), lambda: bring(asked), lambda: check(asked)):
        with pytest.raises(InvalidInput) as caught:
            await work()
        for each in told:
            assert each in str(caught.value), str(caught.value)


async def test_a_database_in_which_nothing_is_recognised(table: str, tmp_path: Path) -> None:
    source = database(tmp_path, calls="id INTEGER PRIMARY KEY, user_id TEXT, kind TEXT, created_at TEXT", misc="a TEXT")
    await refused(
        source, table, tmp_path, "calls (2 rows), misc (2 rows)", '[events]\ntable = "calls"\nuser = "user_id"',
        'action = "action"  # one of: id, user_id, kind, created_at',
    )  # fmt: skip


@pytest.mark.parametrize(
    ("mapping", "told"),
    [
        ({"events": {"table": "usage_lgo"}}, "events.table: there is no 'usage_lgo'; did you mean 'usage_log'?"),
        ({"events": {"table": "other.usage_log"}}, "there is no 'other.usage_log'; did you mean 'usage_log'?"),
        ({"users": {"table": "accounts"}}, "users.table: there is no 'accounts'"),
        ({"events": {"cost": "unit"}}, "events.cost: usage_log has no column 'unit'; did you mean 'units'?"),
        ({"events": {"time": ["at", "when"]}}, "events.time: usage_log has no column 'at', 'when'"),
        ({"users": {"plan": "plan_cod"}}, "users.plan: user has no column 'plan_cod'; did you mean 'plan_code'?"),
        ({"plans": {"quotas": {"hint": "mxhints/day"}}}, "plans.quotas.hint: plan has no column 'mxhints'"),
    ],
)
@pytest.mark.parametrize("kind", ["sqlite", "json", "csv"])
async def test_a_mapping_names_what_is_not_there(
    kind: str, mapping: dict[str, Any], told: str, empty: str, tmp_path: Path
) -> None:
    source = tables(kind, tmp_path)
    told = told if kind == "sqlite" else told.replace("column", "field")
    told = told.replace(" has no field", ".csv has no field") if kind == "csv" else told
    await refused(source, empty, tmp_path, told, mapping=mapping)
    assert await events_in(empty) == []


def tables(kind: str, folder: Path) -> str:
    if kind == "sqlite":
        plan, user = "id INTEGER PRIMARY KEY, max_hints_per_day INTEGER", "id INTEGER PRIMARY KEY, plan_code TEXT"
        return database(folder, usage_log=f"{USES}, units INTEGER, agent TEXT", user=user, plan=plan)
    found: dict[str, list[dict[str, Any]]] = {
        "usage_log": [{**USE, "units": 5, "agent": "x"}],
        "user": [{"id": 1, "plan_code": "a"}],
        "plan": [{"id": 1, "max_hints_per_day": 5}],
    }
    if kind == "json":
        (folder / "dump.json").write_text(json.dumps(found))
        return str(folder / "dump.json")
    (folder / "dump").mkdir()
    for name, rows in found.items():
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        (folder / "dump" / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return str(folder / "dump")


async def test_the_printed_mapping_asks_for_nothing_that_is_optional(table: str, tmp_path: Path) -> None:
    mapping = {"events": {"cost": ["cost"], "table": ["usage_log", "usage_logs", "usage", "events", "history"]}}
    asked = plan_of(database(tmp_path, usage_log=USES), table, tmp_path, mapping=mapping)
    assert (await bring(asked)).checkpoint.of("events").written == 2


async def test_columns_that_nobody_mapped_are_named(table: str, tmp_path: Path) -> None:
    done = await bring(plan_of(tables("sqlite", tmp_path), table, tmp_path))
    assert "usage_log: nothing is read from the columns units, agent" in done.notes
    assert "user: nothing is read from the columns plan_code" in done.notes


async def test_fields_that_nobody_mapped_are_named(table: str, tmp_path: Path) -> None:
    done = await bring(plan_of(tables("json", tmp_path), table, tmp_path))
    assert "usage_log: nothing is read from the fields units, agent" in done.notes


async def test_djangos_names(table: str, tmp_path: Path) -> None:
    plan = "id INTEGER PRIMARY KEY, name TEXT, max_hints_per_day INTEGER"
    source = database(
        tmp_path, api_usagelog=USES, api_user="id INTEGER PRIMARY KEY, subscription_plan_id INTEGER",
        api_subscriptionplan=plan, django_session="id TEXT", api_user_groups="id INTEGER PRIMARY KEY, user_id TEXT",
    )  # fmt: skip
    asked = plan_of(source, table, tmp_path)
    counts = (await bring(asked)).checkpoint.counts
    assert {name: each.written for name, each in counts.items()} == {"plans": 2, "users": 2, "events": 2, "counters": 2}
    assert (await check(asked)).same


async def test_several_tables_may_be_meant(table: str, tmp_path: Path) -> None:
    users = "id INTEGER PRIMARY KEY, name TEXT"
    source = database(tmp_path, api_usagelog=USES, auth_user=users, api_user=users)
    await refused(source, table, tmp_path, "several tables may hold the users: api_user, auth_user", "[users] table =")
    assert (await bring(plan_of(source, table, tmp_path, entities=("events",)))).checkpoint.of("events").written == 2
    mapping = {"users": {"table": "auth_user"}}
    assert (await bring(plan_of(source, table, tmp_path, mapping=mapping))).checkpoint.of("users").written == 2


async def test_a_table_of_another_schema(table: str, tmp_path: Path) -> None:
    asked = plan_of(
        database(tmp_path, calls=USES), table, tmp_path, mapping={"events": {"table": "main.calls"}}, batch_size=1
    )
    assert (await bring(asked)).checkpoint.of("events").written == 2
    assert (await check(asked)).same


async def test_items_of_users_and_their_usage(engine: Engine, table: str, tmp_path: Path) -> None:
    at = NOW - timedelta(hours=1)
    iso = at.isoformat().replace("+00:00", "Z")

    def item(pk: str, sk: str, **attributes: Any) -> dict[str, Any]:
        kinds = {str: "S", int: "N", dict: "M"}
        wire = {name: {kinds[type(v)]: str(v) if type(v) is int else v} for name, v in attributes.items()}
        return {"PK": {"S": pk}, "SK": {"S": sk}, **wire}

    items = [
        item("USER#1", "PROFILE", email="a@example.com", plan="pro"),
        item("USER#1", f"USAGE#{iso}", action="hint", problem_id="p1"),
        item("USER#1", f"USAGE#{iso}#execution"),
        item("USER#2", f"USAGE#{int(at.timestamp())}#hint", data={"action": {"S": "hint"}}),
        item("USER#2", f"USAGE#hint#{NOW - timedelta(days=2):%Y-%m-%d}", count=4),
        item("USER#2", "CONV#1"),
        item("PLAN#pro", "META", max_hints_per_day=50),
    ]
    source = await fill(engine.store_url(f"flat-{uuid4().hex[:8]}"), items)
    asked = plan_of(source, table, tmp_path)
    done = await bring(asked)
    counts = {name: (each.written, each.rejected) for name, each in done.checkpoint.counts.items()}
    assert counts == {"plans": (1, 0), "users": (1, 0), "events": (4, 0), "counters": (3, 0)}
    assert (await check(asked)).same
    assert sorted((event.user, event.action, event.cost) for event in await events_in(table)) == [
        ("1", "execution", 1), ("1", "hint", 1), ("2", "hint", 1), ("2", "hint", 4),
    ]  # fmt: skip
    asked = plan_of(source.replace("earlier://", "dynamodb://"), table, tmp_path)
    with pytest.raises(InvalidInput, match=r"USER#… / USAGE.*write earlier://") as caught:
        await refused_store(asked)
    assert "1 items PLAN#… / META" in str(caught.value)


async def refused_store(asked: Any) -> None:
    from ratelimit.errors import StoreMisconfigured

    try:
        await bring(asked)
    except StoreMisconfigured as error:
        raise InvalidInput(str(error)) from None


async def test_a_table_of_other_things(engine: Engine, table: str, tmp_path: Path) -> None:
    items = [{"PK": {"S": "USER#1"}, "SK": {"S": f"CONV#{n}"}} for n in range(3)]
    source = await fill(engine.store_url(f"conv-{uuid4().hex[:8]}"), items)
    await refused(source, table, tmp_path, "nothing was found in earlier://", "3 items USER#… / CONV")


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("usage_log.json", b"", "is empty"),
        ("usage_log.json", b"[]", "nothing was found"),
        ("usage_log.json", b"{}", "nothing was found"),
        ("usage_log.jsonl", b"\n\n", "nothing was found"),
        ("usage_log.csv", b"user_id,action,created_at\n", "nothing was found"),
        ("dump.json", b'{"logs": [1, 2, 3], "people": {}}', "it has: logs (3 rows), people (0 rows)"),
        ("other.json", b"[1]", "it has: other;"),
        ("dump.sql", b"-- MySQL dump 10.13\nCREATE TABLE x (id INT);", "mysql app < dump.sql"),
        ("usage_log.json", b"PRAGMA foreign_keys=OFF;\n", "is an SQL dump"),
        ("dump.sql.gz", gzip.compress(b"SELECT 1;", mtime=0), "is an SQL dump"),
        ("usage_log.json", b"PK\x03\x04....", "is a ZIP archive"),
        ("usage_log.parquet", b"PAR1....", "is a Parquet file"),
        ("usage_log.jsonl.gz", gzip.compress(b"", mtime=0), "is empty"),
        ("usage_log.jsonl.gz", gzip.compress(json.dumps(USE).encode() * 100, mtime=0)[:-20], "damaged or cut short"),
        ("usage_log.jsonl.gz", b"\x1f\x8b\x08\x00oops", "damaged or cut short"),
        ("usage_log.jsonl.bz2", b"BZh91AY", "compressed by bzip2"),
        ("usage_log.json", json.dumps([USE]).encode("utf-16"), "--encoding utf-16"),
        ("usage_log.json", json.dumps([USE]).encode("utf-16-le"), "--encoding utf-16-le"),
        ("usage_log.json", b'[{"user_id": "J\xf6rg"}]', "UTF-8 at byte 16; name its encoding: --encoding latin-1"),
        ("users.csv", b"id,id\n1,2\n", "names a column twice"),
        ("pg.dump", b"PGDMP...", "pg_restore"),
        ("strange.json", b"{}", "says nowhere what it holds"),
        ("usage_log.json", b'[{"id": 1}, {"id"', "not JSON"),
        ("usage_log.json", b'{"1": {"user_id": "\xed\xa0\x80', "is not UTF-8"),
        ("usage_log.jsonl", b"\0", "NUL"),
    ],
)  # fmt: skip
async def test_files_that_are_no_source(name: str, text: bytes, told: str, empty: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(text)
    await refused(tmp_path / name, empty, tmp_path, told)


async def test_folders_that_are_no_source(table: str, tmp_path: Path) -> None:
    folder = tmp_path / "dump"
    folder.mkdir()
    await refused(folder, table, tmp_path, "it has nothing at all")
    (folder / "dump.sql").write_text("CREATE TABLE x;")
    await refused(folder, table, tmp_path, "it has: dump.sql")
    (folder / "usage_log.json").write_text(json.dumps([USE]))
    await refused(folder, table, tmp_path, "has no users (it has: events, counters)", entities=("users",))
    assert (await bring(plan_of(folder, table, tmp_path))).notes[0] == "left alone, as they hold no usage: dump.sql"


@pytest.mark.parametrize(
    "name",
    [
        "usage_log.json",
        "usage_log.csv",
        pytest.param("usage_log.jsonl", marks=pytest.mark.slow),
        pytest.param("api_usagelog.tsv", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    ("encoding", "packed"), [("utf-8", True), ("utf-8-sig", False), ("latin-1", True), ("utf-16", False)]
)
async def test_what_is_read(name: str, encoding: str, packed: bool, table: str, tmp_path: Path) -> None:
    rows = [{**USE, "id": n, "user_id": f"Jörg, {n}", "cost": n, "metadata": '{"a": "b"}'} for n in (1, 2, 3)]
    if name.endswith("sv"):
        tab = "\t" if name.endswith("tsv") else ","
        cells = [tab.join('"' + str(value).replace('"', '""') + '"' for value in row.values()) for row in rows]
        text = "\r\n".join([tab.join(rows[0]), *cells, ""])
    else:
        text = json.dumps(rows, ensure_ascii=False) if name.endswith("json") else ""
        text = text or "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    raw = text.encode(encoding)
    path = tmp_path / (name + ".gz" if packed else name)
    path.write_bytes(gzip.compress(raw) if packed else raw)
    options: dict[str, Any] = {} if encoding.startswith("utf-8") else {"encoding": encoding}
    asked = plan_of(path, table, tmp_path, batch_size=2, entities=("events",), **options)
    assert (await bring(asked)).checkpoint.of("events").written == 3
    assert (await check(asked)).same
    found = sorted((event.user, event.cost, event.metadata) for event in await events_in(table))
    assert found == [(f"Jörg, {n}", n, {"a": "b"}) for n in (1, 2, 3)]


@pytest.mark.parametrize("name", ["usage_log.jsonl", "usage_log.csv"])
async def test_a_line_in_another_encoding_is_set_aside(name: str, table: str, tmp_path: Path) -> None:
    users = ["a", "Jörg", "b"]
    if name.endswith("csv"):
        lines = ["id,user_id,action,created_at", *(f"{n},{user},hint,{AT}Z" for n, user in enumerate(users))]
    else:
        lines = [json.dumps({**USE, "id": n, "user_id": user}, ensure_ascii=False) for n, user in enumerate(users)]
    (tmp_path / name).write_bytes(("\n".join(lines) + "\n").encode("latin-1"))
    counts = (await bring(plan_of(tmp_path / name, table, tmp_path))).checkpoint.of("events")
    assert (counts.written, counts.rejected) == (2, 1)
    assert "--encoding latin-1" in next(iter(counts.reasons))


async def test_an_encoding_that_is_none(table: str, tmp_path: Path) -> None:
    (tmp_path / "usage_log.json").write_text(json.dumps([USE]))
    await refused(tmp_path / "usage_log.json", table, tmp_path, "--encoding: 'latin-99'", encoding="latin-99")


@pytest.mark.parametrize("source", ["sqlite", "json"])
async def test_times_without_a_zone_are_pointed_out(source: str, table: str, tmp_path: Path) -> None:
    if source == "sqlite":
        spec = database(tmp_path, usage_log=USES)
    else:
        (tmp_path / "usage_log.json").write_text(json.dumps([{**USE, "created_at": AT}]))
        spec = str(tmp_path / "usage_log.json")
    for mapping, is_told in (({}, True), ({"events": {"timezone": "UTC"}}, False)):
        asked = plan_of(spec, table, tmp_path, mapping=mapping)
        for notes in ((await dry_run(asked, listener=unheard)).notes, (await bring(asked)).notes):
            assert any("timezone = 'Europe/Berlin'" in note for note in notes) is is_told, notes


@pytest.mark.parametrize("kept", ["0d5d6fba02b14b6fa8ab0d9b7a3e5b5d", "0d5d6fba-02b1-4b6f-a8ab-0d9b7a3e5b5d"])
async def test_uuids_without_dashes_are_pointed_out_and_get_them(kept: str, table: str, tmp_path: Path) -> None:
    (tmp_path / "usage_log.json").write_text(json.dumps([{**USE, "user_id": kept}]))
    (tmp_path / "user.json").write_text(json.dumps([{"id": kept, "email": "a@x.org"}]))
    told = (await dry_run(plan_of(tmp_path, table, tmp_path), listener=unheard)).notes
    assert any("uuids = 'dashed'" in note for note in told) is ("-" not in kept)
    asked = plan_of(tmp_path, table, tmp_path, mapping={"users": {"uuids": "dashed"}})
    assert not any("uuids" in note for note in (await bring(asked)).notes)
    assert (await check(asked)).same
    (event,) = await events_in(table)
    assert event.user == str(UUID(kept))
    assert await record_in(table, event.user, "hint")


async def test_times_with_a_zone_are_not(table: str, tmp_path: Path) -> None:
    (tmp_path / "usage_log.json").write_text(json.dumps([USE, {**USE, "id": 2, "created_at": NOW.timestamp() - 60}]))
    assert not any(
        "zone" in note for note in (await bring(plan_of(tmp_path / "usage_log.json", table, tmp_path))).notes
    )


async def test_a_user_whose_email_is_taken(table: str, tmp_path: Path) -> None:
    """Foreseen, rejected, and not missing ever after; also where it was taken in the table before."""
    users = [{"id": n, "email": email} for n, email in enumerate(["a@x.org", "A@x.org", "b@x.org", "c@x.org"], 1)]
    (tmp_path / "users.json").write_text(json.dumps(users[2:3]))
    await bring(plan_of(tmp_path / "users.json", table, tmp_path))
    (tmp_path / "users.json").write_text(json.dumps([*users[:2], {"id": 9, "email": "B@x.org"}, users[3]]))
    asked = plan_of(tmp_path / "users.json", table, tmp_path)
    forecast = (await dry_run(asked, listener=unheard)).counts["users"]
    counts = (await bring(asked)).checkpoint.of("users")
    assert (forecast.written, forecast.rejected) == (counts.written, counts.rejected) == (2, 2)
    assert forecast.reasons == counts.reasons == {"another user has this email already ('…')": 2}
    verdict = await check(asked, more_is_fine=True)
    found = verdict.entities["users"]
    assert (verdict.same, found.missing, found.rejected) == (True, 0, 2), verdict
    assert "user 9 is rejected: user 3 has this e-mail already" in " ".join(verdict.notes)
    assert (await bring(asked)).checkpoint.of("users").rejected == 2
    assert (await dry_run(asked, listener=unheard)).counts["users"].rejected == 2


async def test_reasons_are_whole(table: str, tmp_path: Path) -> None:
    rows = [{**USE, "id": n, "created_at": time} for n, time in enumerate(["soon", "5 o'clock", "1_000", "٣"])]
    rows += [{**USE, "id": n, "cost": cost} for n, cost in enumerate(["1_000", "٣", "1e3"], 10)]
    (tmp_path / "usage_log.json").write_text(json.dumps(rows))
    reasons = (await bring(plan_of(tmp_path / "usage_log.json", table, tmp_path))).checkpoint.of("events").reasons
    assert reasons == {
        "time '…' cannot be read; name its format in the mapping (events.time_format)": 4,
        "cost must be a whole number, not '…'": 3,
    }
    assert await record_in(table, "7", "hint") == {}
