"""Values as sources write them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from uuid import UUID

import pytest

from ratelimit.errors import InvalidInput
from ratelimit.migrate import convert

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
