"""The exact totals of a day and a month, counted in the same write as the admission."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Final

from ratelimit.algorithms.base import Ops, give_back
from ratelimit.algorithms.fields import Per, current_totals, total_fields
from ratelimit.clock import DAY
from ratelimit.store.write import Add, Record

_KEPT_COSTS: Final = 64


class Totals:
    """Operations that keep the totals; remembers the fields of the current UTC day."""

    __slots__ = ("_day", "_fields", "_ops")

    def __init__(self) -> None:
        self._day: int | None = None
        self._fields = ("", "")
        self._ops: dict[int, Ops] = {}

    def add(self, now: int, amount: int) -> Ops:
        """Count `amount` units into the day and the month of `now`."""
        self._turn_to(now)
        ops = self._ops.get(amount)
        if ops is None:
            if len(self._ops) >= _KEPT_COSTS:
                self._ops.clear()
            ops = self._ops[amount] = tuple(Add(field, amount) for field in self._fields)
        return ops

    def refund(self, now: int, amount: int, record: Record | None) -> Ops:
        """Take `amount` back from the day and the month of `now`, or what is left there where the record is known."""
        self._turn_to(now)
        day, month = self._fields
        return give_back(day, amount, record) + give_back(month, amount, record)

    def _turn_to(self, now: int) -> None:
        if now // DAY != self._day:
            self._day = now // DAY
            self._fields = current_totals(now)
            self._ops.clear()


def days_of(record: Record) -> Mapping[date, int]:
    """Units used per UTC day, oldest first."""
    return {day: record[field] for field, day, month in sorted(total_fields(record)) if not month}


def months_of(record: Record) -> Mapping[date, int]:
    """Units used per calendar month (its first day), oldest first."""
    return {day: record[field] for field, day, month in sorted(total_fields(record)) if month}


def totals_of(
    record: Record, per: Per = "day", *, since: date | None = None, until: date | None = None
) -> dict[date, int]:
    """Units used per UTC day, or per calendar month (by its first day), oldest first; those that `since` and `until`
    lie in included."""
    found = days_of(record) if per == "day" else months_of(record)
    if per == "month" and since is not None:
        since = since.replace(day=1)
    return {
        day: used for day, used in found.items() if (since is None or since <= day) and (until is None or day <= until)
    }
