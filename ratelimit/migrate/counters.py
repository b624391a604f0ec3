"""Writing counters: one conditional write each, which a mark in the record keeps from ever being made twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from ratelimit.algorithms import rule
from ratelimit.algorithms.fields import RESET, bucket_field, bucket_limit_field, bucket_window, stale
from ratelimit.errors import StoreMisconfigured, StoreUnavailable
from ratelimit.migrate.ledger import Ledger
from ratelimit.migrate.rows import Counted
from ratelimit.migrate.tally import MARK, Sum, Tallied, expiry_of, is_bucket
from ratelimit.migrate.target import Outcome, Target
from ratelimit.names import Key
from ratelimit.quota import Quota
from ratelimit.store import Add, Expect, Op, Put, Record, Write

_ATTEMPTS: Final = 10


class CounterWriter:
    """Adds what was counted elsewhere to the target's records. `now` is in microseconds."""

    def __init__(self, target: Target, *, now: int, ledger: Ledger | None = None) -> None:
        self._target = target
        self._ledger = ledger
        self._now = now
        self._expires_at = expiry_of(now)

    async def add(self, found: Tallied) -> Outcome | int:
        """Add the sums; where a run has been that came less far, none: the mark that is there comes back.

        Raises `StoreUnavailable` where the record keeps changing.
        """
        for _ in range(_ATTEMPTS):
            record = await self._target.record(found.key)
            mark = record.get(MARK)
            if mark is not None and mark >= found.until:  # the answer was lost, or an earlier run had come so far
                return "there"
            if mark is not None and mark != found.since:
                return mark
            seen = counted_by(found.sums, record, self._now)
            if self._ledger is not None:
                self._ledger.note_counter(found, seen)
            changed = {field: Sum(0, 0) for field, value in seen.items() if value != record.get(field)}
            ops = [op for field, each in {**changed, **found.sums}.items() for op in _ops(field, each, record, seen)]
            written = await self._write(found, ops)
            if written:
                return "written"
            if written is not None and self._ledger is not None:
                self._ledger.forget_counter(found.key)
        raise StoreUnavailable(f"the counters of {found.key.user!r} kept changing; run it again")

    async def copy(self, found: Counted) -> Outcome:
        """Add all fields of a record of another table, once: a record that carries a mark has them."""
        return await self._copy(found.key, found.record, {})

    async def follow(self, found: Counted) -> Outcome:
        """Do as `copy` where a mirror of the other table writes to the target already: what that wrote is in both.

        The target is read first, so that what comes in between is at most counted twice, and never lost.
        """
        mirrored = await self._target.record(found.key)
        return await self._copy(found.key, await found.fresh(), mirrored)

    async def _copy(self, key: Key, record: Record, mirrored: Record) -> Outcome:
        sums = {
            field: Sum(value, 0) if is_bucket(field) else Sum(0, max(0, value - mirrored.get(field, 0)))
            for field, value in live(record, self._now).items()
        }
        if not sums or MARK in (mirrored or await self._target.record(key)):
            return "there"
        outcome = await self.add(Tallied(key, sums, None, self._now // 1000))
        return "there" if isinstance(outcome, int) else outcome

    async def _write(self, found: Tallied, ops: Sequence[Op]) -> bool | None:
        """Return None where nobody knows whether it was executed."""
        mark = found.since
        expected = Expect(MARK, low=1, high=0, or_missing=True) if mark is None else Expect(MARK, low=mark, high=mark)
        write = Write((expected, *ops, Put(MARK, found.until)), self._expires_at)
        try:
            return await self._target.apply(found.key, write, now=self._now)
        except StoreMisconfigured:
            raise
        except StoreUnavailable:  # it may have been executed; the mark tells
            await self._target.pause()
            return None


def live(record: Mapping[str, int], now: int) -> dict[str, int]:
    """Return what of a record still counts at this moment (µs): not what is stale, nor a bucket that is full.

    What was given back to a bucket stays when it is full: the decisions that may yet be refunded count from it.
    """
    gone = {MARK, RESET, *stale(record, now)}
    for field, value in record.items():
        window = bucket_window(field)
        if window is not None and value <= now * 1000:
            gone |= {field, bucket_limit_field(window)}
    return {field: value for field, value in record.items() if field not in gone and value > 0}


def counted_by(sums: Mapping[str, Sum], record: Record, now: int) -> Record:
    """Return the record, its buckets converted to the limits by which the sums count, so that they can be added."""
    seen = dict(record)
    for field in sums:
        window = bucket_window(field)
        limit = None if window is None else sums.get(bucket_limit_field(window))
        if window is None or limit is None:
            continue
        seen[bucket_limit_field(window)] = limit.floor
        if record.get(bucket_field(window), 0) < now * 1000:
            continue
        for op in rule("gcra", Quota(limit.floor, window)).charge(now, 0, record):
            if type(op) is Put:
                seen[op.field] = op.value
            elif type(op) is Add:
                seen[op.field] = seen.get(op.field, 0) + op.amount
    return seen


def _ops(field: str, each: Sum, record: Record, seen: Record) -> tuple[Op, ...]:
    """A counter commutes with whoever else adds to it; a bucket has to be seen."""
    if not is_bucket(field):
        return (Add(field, each.amount),)
    value = record.get(field)
    same = Expect(field, low=1, high=0, or_missing=True) if value is None else Expect(field, low=value, high=value)
    return same, Put(field, each.on(seen.get(field)))
