"""The names of a record's fields, and which of them have outlived their use.

A window's index is part of its field's name (`d20758`, `m10_2893001`), so a new window needs no reset and no expiry:
yesterday's counter simply is another field, dropped by a later write.

    d20758          units spent in the 20,758th UTC day since the epoch
    m10_2893001     the same for windows of 10 minutes
    gd, gm10        a GCRA bucket: its theoretical arrival time
    gdl, gm10l      the limit that this counts by
    gdr, gm10r      what was ever given back to the bucket, in nanoseconds
    u261121         units used on a day of this century;  u2611: in a month
    c, r            slots in use; units reserved
    c1764349275     of the slots in use, those that are over at that epoch second, unless they are given back or renewed
    r1764349275_75hd  the same of the units reserved: taken at least 75 s before, from the windows `h` and `d`
    z               when it was last reset, in microseconds
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final, Literal, TypeAlias, get_args

from ratelimit.clock import SECOND
from ratelimit.errors import InvalidInput
from ratelimit.quota import Unit, Window

Per: TypeAlias = Literal["day", "month"]
SLOTS: Final = "c"
RESERVED: Final = "r"
RESET: Final = "z"

DAYS_KEPT: Final = 35
MONTHS_KEPT: Final = 13

_LETTERS: Final[dict[Unit, str]] = {
    "second": "s", "minute": "m", "hour": "h", "day": "d", "week": "w", "month": "o", "year": "y",
}  # fmt: skip
_UNITS: Final = {letter: unit for unit, letter in _LETTERS.items()}
_WINDOW_FIELD = re.compile(r"([smhdwoy])(?:(\d+)_)?(-?\d+)", re.ASCII)
_BUCKET_FIELD = re.compile(r"g([smhdwoy])(\d*)", re.ASCII)
_NANOSECONDS_A_SECOND: Final = 10**9
_HELD_FIELD = re.compile(r"([cr])(\d+)(?:_(\d+)((?:g?[smhdwoy]\d*)*))?", re.ASCII)
_HELD_WINDOW = re.compile(r"(g?)([smhdwoy])(\d*)", re.ASCII)
_TOTAL_FIELD = re.compile(r"u(\d{2})(\d{2})(\d{2})?", re.ASCII)


def window_field(window: Window, index: int) -> str:
    if window.count == 1:
        return f"{_LETTERS[window.unit]}{index}"
    return f"{_LETTERS[window.unit]}{window.count}_{index}"


def bucket_field(window: Window) -> str:
    return f"g{_LETTERS[window.unit]}{window.count if window.count > 1 else ''}"


def bucket_window(field: str) -> Window | None:
    """Return the window of the bucket whose arrival time the field is; None for any other field."""
    match = _BUCKET_FIELD.fullmatch(field)
    return Window(int(match[2] or 1), _UNITS[match[1]]) if match else None


def bucket_limit_field(window: Window) -> str:
    return bucket_field(window) + "l"


def bucket_returned_field(window: Window) -> str:
    return bucket_field(window) + "r"


@dataclass(frozen=True, slots=True)
class HeldField:
    """What a field of slots or of reserved units says by its name: when they are over, and what they were taken from.

    `total` is the field in which they are counted besides; `start` and `end` are epoch seconds.
    """

    name: str
    total: str
    start: int
    end: int
    windows: tuple[Window, ...]
    buckets: bool


def slots_field(end: int) -> str:
    return f"{SLOTS}{end}"


def reserved_field(start: int, end: int, windows: Iterable[Window], *, buckets: bool) -> str:
    """Return the field of units that were reserved at an epoch second or soon after it, and are over at another."""
    codes = [bucket_field(window) if buckets else bucket_field(window)[1:] for window in windows]
    return f"{RESERVED}{end}_{end - start}{''.join(codes)}"


def held_fields(record: Iterable[str]) -> Iterator[HeldField]:
    """Yield what a record's fields say about slots and reserved units, but for how many they are."""
    for field in record:
        if field[0] in "cr" and (match := _HELD_FIELD.fullmatch(field)):
            total, end, ago, codes = match.groups()
            found = _HELD_WINDOW.findall(codes or "")
            windows = tuple([Window(int(count or 1), _UNITS[letter]) for _, letter, count in found])
            buckets = any(bucket for bucket, _, _ in found)
            yield HeldField(field, total, int(end) - int(ago or 0), int(end), windows, buckets)


def is_held(field: str) -> bool:
    """Return whether the field counts slots or reserved units, which whoever has them still has after a reset."""
    return field in (SLOTS, RESERVED) or _HELD_FIELD.fullmatch(field) is not None


def buckets_end(record: Mapping[str, int]) -> int:
    """Return the epoch second at which all the buckets of a record are full again; 0 where there are none."""
    return max(
        [-(-at // _NANOSECONDS_A_SECOND) for field, at in record.items() if _BUCKET_FIELD.fullmatch(field)], default=0
    )


def day_field(day: date) -> str:
    return f"u{day:%y%m%d}"


def month_field(day: date) -> str:
    return f"u{day:%y%m}"


def is_total(field: str) -> bool:
    """Return whether the field is a day's or a month's total, and so outlives a reset of the quotas."""
    return field[0] == "u"


def current_totals(now: int) -> tuple[str, str]:
    """Return the totals that a spending at this moment counts into: the day's and the month's."""
    day = utc_day(now)
    return day_field(day), month_field(day)


def total_fields(record: Iterable[str]) -> Iterator[tuple[str, date, bool]]:
    """Yield the totals among a record's fields: the name, the (first) day, and whether it is a whole month's."""
    for field in record:
        if match := _TOTAL_FIELD.fullmatch(field):
            year, month, day = match.groups()
            yield field, date(2000 + int(year), int(month), int(day or 1)), day is None


def utc_day(now: int) -> date:
    return datetime.fromtimestamp(now // SECOND, UTC).date()


def check_per(per: object) -> None:
    if per not in get_args(Per):
        raise InvalidInput(f"per must be one of {', '.join(map(repr, get_args(Per)))}, not {per!r}")


def first_kept(today: date, per: Per) -> date:
    """Return the first of the days, or of the months (its first day), whose totals are kept; `today` is the last."""
    if per == "day":
        return today - timedelta(days=DAYS_KEPT - 1)
    year, month = divmod(today.year * 12 + today.month - MONTHS_KEPT, 12)
    return date(year, month + 1, 1)


def stale(record: Iterable[str], now: int) -> list[str]:
    """Return the fields that no decision and no report will read again.

    Of windows, the current one and the two before it stay: sliding windows read two, and a process whose clock is
    slightly behind still counts in the previous one.
    """
    today = utc_day(now)
    first_day, first_month = first_kept(today, "day"), first_kept(today, "month")
    found = []
    for field in record:
        if match := _WINDOW_FIELD.fullmatch(field):
            letter, count, index = match.groups()
            window = Window(int(count or 1), _UNITS[letter])
            if int(index) < window.span(now).index - 2:
                found.append(field)
    for field, day, whole_month in total_fields(record):
        if day < (first_month if whole_month else first_day):
            found.append(field)
    return found
