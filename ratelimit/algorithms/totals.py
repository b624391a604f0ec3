"""The exact totals of a day and a month, counted in the same write as the admission."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any, Final

from ratelimit.algorithms.base import Ops, Taken, give_back
from ratelimit.algorithms.fields import (
    DAYS_KEPT,
    MONTHS_KEPT,
    Per,
    check_per,
    current_totals,
    first_kept,
    total_fields,
    utc_day,
)
from ratelimit.clock import DAY
from ratelimit.errors import InvalidInput, OutOfRetention
from ratelimit.store.base import Add, Record

_MAX_KEPT_COSTS: Final = 64
_KEPT: Final[dict[Per, str]] = {"day": f"{DAYS_KEPT} days", "month": f"{MONTHS_KEPT} months"}


class Totals:
    """Operations that keep the totals; remembers the fields of the current UTC day."""

    __slots__ = ("_day", "_fields", "_ops")

    def __init__(self) -> None:
        self._day: int | None = None
        self._fields = ("", "")
        self._ops: dict[int, Ops] = {}

    def add(self, now: int, amount: int) -> Ops:
        if now // DAY != self._day:
            self._turn_to(now)
        ops = self._ops.get(amount)
        if ops is None:
            if len(self._ops) >= _MAX_KEPT_COSTS:
                self._ops.clear()
            ops = self._ops[amount] = tuple(Add(field, amount) for field in self._fields)
        return ops

    def refund(self, amount: int, record: Record | None, taken: Taken) -> Ops:
        """Take `amount` back from the day and the month in which it was taken, or what is left there where the record
        is known."""
        self._turn_to(taken.at)
        day, month = self._fields
        return give_back(day, amount, record, taken) + give_back(month, amount, record, taken)

    def _turn_to(self, now: int) -> None:
        if now // DAY != self._day:
            self._day = now // DAY
            self._fields = current_totals(now)
            self._ops.clear()


def totals_of(
    record: Record, per: Per = "day", *, since: date | None = None, until: date | None = None
) -> dict[date, int]:
    """Return the units used per UTC day, or per calendar month (by its first day), oldest first.

    `since` and `until` are the first and the last day, or first days of months.
    """
    return {
        day: record[field]
        for field, day, month in sorted(total_fields(record))
        if month == (per == "month") and (since is None or since <= day) and (until is None or day <= until)
    }


def kept_range(now: int, since: object, until: object, per: Any = "day") -> tuple[date, date]:
    """Return the first and the last day that are asked for, by default of all that are kept. `now` is in microseconds.

    `since` and `until` are a `date`, or an aware `datetime`, which stands for its UTC day. Raise `InvalidInput`
    (of another `per` too), and `OutOfRetention` for what is no longer kept and for what has not come yet.
    """
    check_per(per)
    today = utc_day(now)
    oldest = first_kept(today, per)
    first = oldest if since is None else utc_date("since", since)
    if per == "month":
        first = first.replace(day=1)
    last = today if until is None else utc_date("until", until)
    if first > last:
        raise InvalidInput(f"since ({first}) must not be later than until ({last})")
    if first < oldest:
        raise OutOfRetention(f"{first} is out of reach: totals are kept for {_KEPT[per]}, from {oldest} on")
    if first > today:
        raise OutOfRetention(f"{first} has not come yet: today is {today} in UTC")
    return first, min(last, today)


def utc_date(name: str, day: object) -> date:
    """Return a date as it is, and the UTC day of an aware `datetime`. Raise `InvalidInput` that says `name`."""
    if isinstance(day, datetime):
        if day.tzinfo is None:
            raise InvalidInput(f"{name} must be a date, or an aware datetime, not {day!r}")
        try:
            return day.astimezone(UTC).date()
        except OverflowError:
            raise InvalidInput(f"{name} must be a day of the years 1 to 9999 in UTC, not {day!r}") from None
    if not isinstance(day, date):
        raise InvalidInput(f"{name} must be a date, not {day!r}")
    return day
