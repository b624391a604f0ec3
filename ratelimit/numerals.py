"""Numbers and dates in text: ASCII digits, and nothing else of all that Python would take (`1_000`, `٣`, ` 3`, `nan`).

What one program writes another one has to read the same: an underscore or a foreign digit is a mistake to be told.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta
from typing import Final

MAX_DIGITS: Final = 40
"""More than any number here has; Python refuses thousands of them, in a way of its own."""

_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_WHOLE = re.compile(rf"[+-]?[0-9]{{1,{MAX_DIGITS}}}")
_DECIMAL = re.compile(rf"[+-]?(?:[0-9]{{1,{MAX_DIGITS}}}(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{{1,3}})?")


def to_int(text: str) -> int:
    """Return a whole number. Raises `ValueError`."""
    if not _WHOLE.fullmatch(text):
        raise ValueError(f"{text[: 2 * MAX_DIGITS]!r} is not a whole number")
    return int(text)


def to_float(text: str) -> float:
    """Return a number. Raises `ValueError`."""
    if not _DECIMAL.fullmatch(text):
        raise ValueError(f"{text[: 2 * MAX_DIGITS]!r} is not a number")
    return float(text)


def to_day(text: str) -> date:
    """Return a day, as in `2026-01-05`. Raises `ValueError`."""
    if not _DAY.fullmatch(text):
        raise ValueError(f"{text[: 2 * MAX_DIGITS]!r} is no day")
    return date.fromisoformat(text)


def to_moment(text: str, *, end: bool = False) -> datetime:
    """Return the midnight (UTC) with which a day begins, or ends; or a time, which is in UTC where it has no zone.

    Raises `ValueError`.
    """
    try:
        if _DAY.fullmatch(text):
            return datetime.combine(to_day(text), time(), UTC) + timedelta(days=1 if end else 0)
        if _DAY.match(text):  # ISO 8601 has other ways to write a day, which would be taken for its midnight
            moment = datetime.fromisoformat(text)
            # In UTC from here on: near the ends of the calendar, where that cannot be, it is no moment.
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except OverflowError:
        pass
    raise ValueError(f"{text[: 2 * MAX_DIGITS]!r} is no date")
