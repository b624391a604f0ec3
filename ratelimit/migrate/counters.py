"""Writing counters: one conditional write each, which a mark in the record keeps from ever being made twice."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from ratelimit.algorithms.fields import stale
from ratelimit.clock import DAY, SECOND
from ratelimit.errors import StoreMisconfigured, StoreUnavailable
from ratelimit.migrate.rows import Counted
from ratelimit.migrate.tally import MARK, Sum
from ratelimit.migrate.target import Fate, Target
from ratelimit.names import Key
from ratelimit.store import Add, Expect, Op, Put, Record, Write

# As the limiter has it: thirteen months of totals outlive the last write.
_KEPT_DAYS: Final = 400
_ATTEMPTS: Final = 10


class Counters:
    """Adds what was counted elsewhere to the target's records. `began` (microseconds) is what the mark will say."""

    def __init__(self, target: Target, *, began: int) -> None:
        self._target = target
        self._began = began
        self._mark = began // 1000
        self._expires_at = (began // DAY + _KEPT_DAYS) * (DAY // SECOND)

    async def add(self, key: Key, sums: Mapping[str, Sum], *, mark: int | None = None) -> Fate | int:
        """Sums of uses, those up to the `mark` being in the record; None where no run has been there before.

        Where one has, nothing is written, and the mark that is there comes back. Raises `StoreUnavailable` where the
        record keeps changing.
        """
        for _ in range(_ATTEMPTS):
            record = await self._target.record(key) if any(map(_is_bucket, sums)) else {}
            ops = [op for field, each in sums.items() for op in _ops(field, each, record)]
            if await self._write(key, ops, mark):
                return "written"
            now = (await self._target.record(key)).get(MARK)
            if now is not None and now >= self._mark:  # the answer was lost, or an earlier run had come so far
                return "there"
            if now is not None and now != mark:
                return now
        raise StoreUnavailable(f"the counters of {key.user!r} kept changing; run it again")

    async def copy(self, found: Counted) -> Fate:
        """All fields of a record of another table, once: a record that carries a mark has them."""
        return await self._copy(found.key, found.record, {})

    async def follow(self, key: Key, fresh: Callable[[Key], Awaitable[Record]]) -> Fate:
        """As `copy`, where a mirror of the other table writes to the target already: what that has written is in both.

        The target is read first, so that what comes in between is at most counted twice, and never lost.
        """
        mirrored = await self._target.record(key)
        return await self._copy(key, await fresh(key), mirrored)

    async def _copy(self, key: Key, record: Record, mirrored: Record) -> Fate:
        gone = {MARK, *stale(record, self._began)}
        left = {field: value for field, value in record.items() if field not in gone and value > 0}
        sums = {
            field: Sum(value, 0) if _is_bucket(field) else Sum(0, max(0, value - mirrored.get(field, 0)))
            for field, value in left.items()
        }
        if not sums or MARK in (mirrored or await self._target.record(key)):
            return "there"
        fate = await self.add(key, sums)
        return "there" if isinstance(fate, int) else fate

    async def _write(self, key: Key, ops: Sequence[Op], mark: int | None) -> bool:
        expected = Expect(MARK, low=1, high=0, or_missing=True) if mark is None else Expect(MARK, low=mark, high=mark)
        write = Write((expected, *ops, Put(MARK, self._mark)), self._expires_at)
        try:
            return await self._target.apply(key, write, now=self._began)
        except StoreMisconfigured:
            raise
        except StoreUnavailable:  # it may have been executed; the mark tells
            await self._target.pause()
            return False


def _ops(field: str, each: Sum, record: Record) -> tuple[Op, ...]:
    """A counter commutes with whoever else adds to it; a bucket has to be seen."""
    if not _is_bucket(field):
        return (Add(field, each.amount),)
    value = record.get(field)
    seen = Expect(field, low=1, high=0, or_missing=True) if value is None else Expect(field, low=value, high=value)
    return seen, Put(field, each.on(value))


def _is_bucket(field: str) -> bool:
    return field[0] == "g"
