"""Values as sources write them."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ratelimit.errors import InvalidInput
from ratelimit.migrate import convert, dry_run
from ratelimit.migrate.sql import with_driver
from tests.migrate.plans import bring, check, events_in, plan_of, unheard

NOON = 1_767_614_400_000  # 2026-01-05T12:00:00Z
BERLIN = convert.Zone("Europe/Berlin")
USER = UUID("9f1c2d3e-4f5a-4b6c-8d7e-6f5a4b3c2d1e")


@pytest.mark.parametrize(
    "written",
    [
        datetime(2026, 1, 5, 12, tzinfo=UTC),
        datetime(2026, 1, 5, 17, 30, tzinfo=timezone(timedelta(hours=5, minutes=30))),
        datetime(2026, 1, 5, 13),
        "2026-01-05T12:00:00Z",
        "2026-01-05 13:00:00",
        "2026-01-05T07:00:00-05:00",
        "Mon, 05 Jan 2026 12:00:00 GMT",
        "5 Jan 2026 07:00 EST",
        "Mon, 5 Jan 2026 13:00:00 +0100 (CET)",
        "Mon, 05 Jan 2026 12:00:00 -0000",
        "1767614400",
        "1767614400.0",
        NOON // 1000,
        NOON,
        NOON * 1000,
        Decimal("1767614400.000"),
    ],
)
def test_a_time_however_it_is_written(written: object) -> None:
    assert convert.milliseconds(written, zone=BERLIN) == NOON


def test_a_time_in_a_format_of_its_own() -> None:
    assert convert.milliseconds("05/01/2026 13:00", zone=BERLIN, format="%d/%m/%Y %H:%M") == NOON
    with pytest.raises(InvalidInput, match="is not written as"):
        convert.milliseconds("2026-01-05", zone=BERLIN, format="%d/%m/%Y %H:%M")


@pytest.mark.parametrize(
    "written",
    [
        "yesterday", "", "05/01/2026 13:00", None, True, datetime.now().date(), "nan", 10**20, Decimal("Infinity"),
        "5 Jan 2026 10:00 PM", "Jan 5, 2026, 10:00 PM", "Mon, 05 Jan 2026 12:00:00 CEST", "5 Jan 2026 10:00 CEST",
        0, "0", -1, 2461374.9, "2461374.9", 99_999_999,
        "Mon, 05 Jan 2026 12:00:00", "5 Jan 2026 10:00", "31 Feb 2026 10:00 GMT", "Mon Jan 05 2026 13:00:00 GMT+0100",
    ],
)  # fmt: skip
def test_what_is_no_time(written: object) -> None:
    with pytest.raises(InvalidInput, match="time"):
        convert.milliseconds(written, zone=BERLIN)


@pytest.mark.parametrize(("value", "meant"), [(1, True), (0, False), (b"\x01", True), ("t", True), ("No", False)])
def test_truths(value: object, meant: bool) -> None:
    assert convert.truth("active", value) is meant


def test_metadata_that_is_no_object_is_kept() -> None:
    assert convert.mapping('{"a": 1}') == {"a": 1}
    assert convert.mapping("plain text") == {"value": "plain text"}
    assert convert.mapping([1, Decimal("1.5")]) == {"value": [1, 1.5]}


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        (Decimal("Infinity"), None), (Decimal("NaN"), None), (Decimal("sNaN"), None), (Decimal("1E+5000"), "1E+5000"),
        (Decimal("7.00"), 7), (Decimal("1.5"), 1.5), (float("nan"), None), ("\ud83d", "\\ud83d"),
        ({"\ud83d": 1}, {"\\ud83d": 1}),
    ],
)  # fmt: skip
def test_what_json_cannot_say(value: object, meant: object) -> None:
    found = convert.plain(value)
    assert found == meant
    assert type(found) is type(meant)


def test_what_is_nested_too_deep_is_trimmed() -> None:
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    assert json.dumps(convert.plain({"a": deep})).count("[") == 99


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        (7, "7"), (Decimal(7), "7"), ("a#b", "a#b"), (7.0, "7"), (" al ice\t", "al ice"), ("josé".encode(), "josé"),
        (b"alice   ", "alice"), (b"sixteen letters!", "sixteen letters!"), (USER, str(USER)), (USER.bytes, str(USER)),
    ],
)  # fmt: skip
def test_texts(value: object, meant: str) -> None:
    assert convert.text("user", value) == meant


@pytest.mark.parametrize(
    "value",
    [
        None, "", "  ", True, 1.5, float("nan"), float("inf"), Decimal("Infinity"), ["alice"], {"$oid": "1"},
        ("a", "b"),
        b"", b"\xff\x00", b"\xff" * 15, b"\xff" * 16,
    ],
)  # fmt: skip
def test_what_is_no_text(value: object) -> None:
    with pytest.raises(InvalidInput, match="user"):
        convert.text("user", value)


# Whatever a row says, it is an entry or a reject: one that ended a run would end every other at the same place.


NOW = datetime.now(UTC) - timedelta(minutes=1)
LONG_AGO = (NOW - timedelta(days=100)).isoformat()

TEXTS = st.text(max_size=8) | st.sampled_from(["\ud83d", "a#b%c", "", " ", "-1", "true", "NaN", "1e999", "9" * 5000])
NUMBERS = st.floats() | st.integers() | st.sampled_from([-1, 0, 1, 10**30, 10**400, 1e300])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)
TIMES = st.sampled_from([NOW.isoformat(), LONG_AGO, "1969-12-31T23:59:59Z", "1960-01-01", "0001-01-01", "9999-12-31"])
LIMITS = st.integers(-1, 9)
ACTIONS = st.just("hint")
# What is right in some rows is odd in others.
COLUMNS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "plans": {"id": TEXTS, "max_hints_per_day": LIMITS, "max_executions_per_day": LIMITS},
    "users": {"id": TEXTS, "plan": TEXTS, "email": st.emails(), "is_active": st.booleans(), "is_staff": LIMITS},
    "usage_log": {
        "id": TEXTS, "user_id": TEXTS, "action": ACTIONS, "created_at": TIMES, "cost": NUMBERS, "allowed": LIMITS,
        "status": st.just(200), "duration": NUMBERS, "problem_id": TEXTS, "request_id": TEXTS, "metadata": VALUES,
    },
}  # fmt: skip


def rows_of(section: str) -> st.SearchStrategy[list[Any]]:
    columns = {name: usual | VALUES for name, usual in COLUMNS[section].items()}
    always = ("id", "user_id", "action", "created_at", "max_hints_per_day")
    needed = {name: columns.pop(name) for name in always if name in columns}
    return st.lists(st.fixed_dictionaries(needed, optional=columns) | VALUES, min_size=10, max_size=20)


@pytest.mark.slow
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.fixed_dictionaries({section: rows_of(section) for section in COLUMNS}))
async def test_every_row_is_an_entry_or_a_reject(table: str, tmp_path: Path, document: dict[str, list[Any]]) -> None:
    folder = tmp_path / uuid4().hex
    folder.mkdir()
    path = folder / "dump.json"
    path.write_text(json.dumps(document))
    asked = plan_of(path, table, folder)
    for counts in ((await dry_run(asked, listener=unheard)).counts, (await bring(asked)).checkpoint.counts):
        for entity, section in (("plans", "plans"), ("users", "users"), ("events", "usage_log")):
            one = counts[entity]  # type: ignore[index]
            outcomes = one.written + one.there + one.kept + one.expired + one.rejected
            assert one.read == outcomes == len(document[section])


def row(**changes: Any) -> dict[str, Any]:
    return {"id": 2, "user_id": "u", "action": "hint", "created_at": NOW.isoformat(), **changes}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"user_id": float("nan")}, "user must be a whole number, not nan"),
        ({"user_id": float("inf")}, "user must be a whole number, not inf"),
        ({"user_id": "\ud800"}, "half of a character"),
        ({"id": "\ud800", "cost": "\ud83d"}, "cost must be a whole number"),
        ({"created_at": "1960-01-01T00:00:00"}, "time lies before 1970"),
        ({"created_at": -1}, "time -1 is no epoch"),
        ({"created_at": -999_999_999}, "time lies before 1970"),
        ({"created_at": LONG_AGO, "cost": 10**30}, "cost must be a whole number from 0 to"),
        ({"created_at": LONG_AGO, "cost": -1}, "cost must be a whole number from 0 to"),
    ],
)
async def test_an_odd_row_is_set_aside_with_its_reason(
    changes: dict[str, Any], told: str, table: str, tmp_path: Path
) -> None:
    path = tmp_path / "usage_log.jsonl"
    path.write_text("\n".join(map(json.dumps, [row(id=1), row(**changes)])))
    forecast = await dry_run(plan_of(path, table, tmp_path), listener=unheard)
    done = await bring(plan_of(path, table, tmp_path))
    for counts in (forecast.counts["events"], done.checkpoint.of("events")):
        assert (counts.written, counts.rejected) == (1, 1)
    assert done.rejects is not None
    (kept,) = map(json.loads, Path(done.rejects).read_text(encoding="utf-8").splitlines())
    assert told in kept["reason"]
    assert json.loads(kept["text"])["action"] == "hint"


async def test_odd_names_of_fields_and_sections_are_told_all_the_same(table: str, tmp_path: Path) -> None:
    path = tmp_path / "dump.json"
    path.write_text(json.dumps({"usage_log": [row(**{"\ud83d": 1})], "\ud83c": [{"a": 1}]}))
    told = (await bring(plan_of(path, table, tmp_path))).checkpoint.notes
    assert any("\\ud83d" in note for note in told)
    assert any("\\ud83c" in note for note in told)


async def test_odd_metadata_is_kept_as_far_as_it_can_be_stored(table: str, tmp_path: Path) -> None:
    deep = json.loads('{"a":' * 200 + "1" + "}" * 200)
    rows = [row(id=1, metadata={"text": "\ud83d"}), row(id=2, metadata=deep), row(id=3, metadata={"n": 10**400})]
    path = tmp_path / "usage_log.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    await bring(plan_of(path, table, tmp_path))
    kept = sorted(json.dumps(event.metadata) for event in await events_in(table))
    assert json.dumps({"text": "\\ud83d"}) in kept
    assert json.dumps({"n": 10**400}) in kept
    assert kept[0].startswith('{"a": {"a": ')
    assert "trimmed" in kept[0]
    assert (await check(plan_of(path, table, tmp_path))).same


@pytest.mark.slow
async def test_postgresql_has_times_and_numbers_that_python_has_not(
    table: str, tmp_path: Path, database: Callable[[str], str]
) -> None:
    """They used to be waited for, or to end the run: each is one row's problem."""
    url = database("postgresql")
    engine = sa.create_engine(with_driver(url))
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE usage_log (id INT PRIMARY KEY, user_id TEXT, action TEXT, created_at TIMESTAMPTZ, "
            "cost NUMERIC, more NUMERIC, day DATE)"
        )
        for number, (time, cost, more, day) in enumerate([
            ("now", "1", "Infinity", "infinity"), ("infinity", "1", "1", None), ("0044-03-15 BC", "1", "1", None),
            ("now", "NaN", "Infinity", "-infinity"), ("now", "Infinity", "NaN", None),
            ("now", "1e5000", "1e5000", None),
        ]):  # fmt: skip
            connection.execute(
                sa.text(
                    "INSERT INTO usage_log SELECT :n, 'u', 'hint', CAST(:t AS TIMESTAMPTZ), :c, :m, CAST(:d AS DATE)"
                ),
                {"n": number, "t": time, "c": Decimal(cost), "m": Decimal(more), "d": day},
            )
    engine.dispose()
    counts = (await bring(plan_of(url, table, tmp_path))).checkpoint.of("events")
    assert (counts.read, counts.written, counts.rejected) == (6, 1, 5)


async def test_text_in_sqlite_that_is_no_text(table: str, tmp_path: Path, database: Callable[[str], str]) -> None:
    url = database("sqlite")
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE usage_log (id INTEGER PRIMARY KEY, user_id TEXT, action TEXT, created_at TEXT, note TEXT)"
        )
        for user, note in (("'u'", "CAST(x'ff' AS TEXT)"), ("CAST(x'ff' AS TEXT)", "'fine'")):
            at = NOW.isoformat()
            connection.exec_driver_sql(
                f"INSERT INTO usage_log (user_id, action, created_at, note) VALUES ({user}, 'hint', '{at}', {note})"
            )
    engine.dispose()
    counts = (await bring(plan_of(url, table, tmp_path))).checkpoint.of("events")
    assert (counts.written, counts.rejected) == (1, 1)
