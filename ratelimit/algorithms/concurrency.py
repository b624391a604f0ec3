"""Concurrency: at most `limit` slots at the same time, each given back when what it was taken for has ended.

The record has one counter of the slots in use, to which a slot is added only where there is room. When one that nobody
gives back is over stands in a field beside it (see `Held`). Of what a request costs it knows nothing.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from ratelimit.algorithms.base import Ops, Taken
from ratelimit.algorithms.fields import (
    RESERVED,
    RESET,
    SLOTS,
    bucket_field,
    bucket_limit_field,
    bucket_returned_field,
    bucket_window,
    current_totals,
    held_fields,
    is_held,
    is_total,
    window_field,
)
from ratelimit.clock import SECOND
from ratelimit.decision import QuotaState
from ratelimit.quota import MAX_LIMIT, Quota
from ratelimit.store.base import Add, Drop, Expect, Op, Put, Record

RETRY_AFTER_S: Final = 1.0
"""When a slot will be free cannot be known: whoever finds none is told to ask again so soon."""


class Concurrency:
    """A quota of slots."""

    __slots__ = ("_ops", "lasts", "max_cost", "quota")

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self.max_cost = MAX_LIMIT if quota.limit else 0
        self.lasts = 0
        self._ops: Ops = (Add(SLOTS, 1, quota.limit),)

    def spend(self, now: int, cost: int, record: Record, contended: bool = False) -> Ops | None:
        return self._ops if record.get(SLOTS, 0) < self.quota.limit else None

    def charge(self, now: int, cost: int, record: Record, contended: bool = False) -> Ops:
        """Nothing that is owed afterwards takes a slot."""
        return ()

    def refund(self, now: int, cost: int, record: Record | None, taken: Taken, position: int) -> Ops:
        """A slot goes back with what holds it, not with units."""
        return ()

    def state(self, now: int, cost: int, record: Record) -> QuotaState:
        used = max(0, record.get(SLOTS, 0))
        left = max(0, self.quota.limit - used)
        retry_after = 0.0 if left else RETRY_AFTER_S if self.quota.limit else None
        return QuotaState(self.quota, used, left, 0.0, retry_after)


# `Held`: what is held of a record, slots and reserved units, as the operations that take it and give it back. It
# stands in the record beside what it was taken from, in a field that says by its name when it is over:
#
#     c 3 · c1764349275 2 · c1764349290 1          three slots in use
#     r 1500 · r1764349275_75d 1500 · d20758 9000  of the 9,000 units spent today, 1,500 are reserved
#
# Whoever gives back takes it out of both in one write, on the condition that it is still in the field; and whoever
# finds a field whose time is over takes all of it out of both, on the condition that it is as he found it. So each
# unit goes back once, whoever does it. Ends are rounded up, so that there are a handful of fields however many hold
# something.


class HeldUnits:
    """So many, counted in one field that says when they are over, and in a `total` of all."""

    __slots__ = ("field", "total", "units")

    def __init__(self, total: str, field: str, units: int) -> None:
        self.total = total
        self.field = field
        self.units = units


class Held:
    """What is held of a record: a slot, reserved units, or both. `start` and `end` are epoch seconds."""

    __slots__ = ("end", "fields", "start")

    def __init__(self, fields: tuple[HeldUnits, ...], start: int, end: int) -> None:
        self.fields = fields
        self.start = start
        self.end = end

    def take(self) -> Ops:
        ops: list[Op] = []
        for one in self.fields:
            ops.append(Add(one.field, one.units))
            if one.total == RESERVED:
                ops.append(Add(RESERVED, one.units))
        return tuple(ops)

    def give_back(self) -> Ops:
        """Hold it no longer, if it still is."""
        return tuple(
            [
                op
                for one in self.fields
                for op in (Expect(one.field, low=one.units), Add(one.field, -one.units), Add(one.total, -one.units))
            ]
        )

    def split(self, units: int | None) -> tuple[Held, Held | None]:
        """Return so many of the reserved units, and what is held without them; None: all of it, and nothing."""
        if units is None:
            return self, None
        part: list[HeldUnits] = []
        rest: list[HeldUnits] = []
        for one in self.fields:
            taken = min(units, one.units) if one.total == RESERVED else 0
            if taken:
                part.append(HeldUnits(one.total, one.field, taken))
            if one.units > taken:
                rest.append(HeldUnits(one.total, one.field, one.units - taken))
        return Held(tuple(part), self.start, self.end), Held(tuple(rest), self.start, self.end)

    def move_to(self, later: Held) -> Ops:
        """Hold it until later, if it still is."""
        return tuple(
            [
                op
                for one, other in zip(self.fields, later.fields, strict=True)
                for op in (Expect(one.field, low=one.units), Add(one.field, -one.units), Add(other.field, one.units))
            ]
        )

    def is_in(self, record: Record) -> bool:
        """Return whether a true record says that it is still held."""
        return all(record.get(one.field, 0) >= one.units for one in self.fields)


def without_spent(now: int, record: Record) -> Ops:
    """Return what leaves of a record its totals, and what is held together with what was taken for it: that is given
    back once more, by the holder or when the time is over. Nothing is done where that has changed meanwhile."""
    ops: list[Op] = []
    gone = {field for field in record if not is_total(field) and not is_held(field) and field != RESET}
    reserved = reserved_in(record)
    for field in gone.intersection(reserved):
        if (window := bucket_window(field)) is None:
            gone.remove(field)
            ops += [Expect(field, low=record[field]), Add(field, min(0, reserved[field] - record[field]))]
        elif (full_at := record[field]) > now * 1000:  # nanoseconds, as buckets count
            returned_field = bucket_returned_field(window)
            gone -= {field, bucket_limit_field(window), returned_field}
            kept = min(full_at, now * 1000 + reserved[field])
            ops += [Expect(field, low=full_at, high=full_at), Put(field, kept), Add(returned_field, full_at - kept)]
    return (*ops, *map(Drop, sorted(gone)))


def reserved_in(record: Record) -> dict[str, int]:
    """Return how much of each field is reserved: units of windows and totals, nanoseconds of buckets."""
    found: Counter[str] = Counter()
    for one in held_fields(record):
        if one.total != RESERVED or not (units := record[one.name]):
            continue
        start = one.start * SECOND
        for window in one.windows:
            if one.buckets:
                limit = max(1, record.get(bucket_limit_field(window), 1))
                found[bucket_field(window)] += units * -(-window.longest * 1000 // limit)
            else:
                found[window_field(window, window.span(start).index)] += units
        for field in current_totals(start):
            found[field] += units
    return found


def reserved_as_in(record: Record) -> Ops:
    """Return what expects that neither more is reserved than in this record, nor anything else."""
    fields = [one.name for one in held_fields(record) if one.total == RESERVED and record[one.name] > 0]
    most = sum([record[name] for name in fields])
    return (*[Expect(name, low=record[name]) for name in fields], Expect(RESERVED, high=most, or_missing=True))


def held_step(hold: int) -> int:
    """Return the seconds to whose multiples the ends are rounded up, so that there are few fields of them."""
    return max(1, hold // 4)


def held_until(now: int, hold: int) -> int:
    step = held_step(hold)
    return -(-(now + hold * SECOND) // (step * SECOND)) * step
