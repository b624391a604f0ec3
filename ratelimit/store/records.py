"""`Records`: what the embedded store remembers, and how a write changes it. Bounded; what has expired goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Final

from ratelimit.clock import SECOND
from ratelimit.names import Key
from ratelimit.store.base import Add, Drop, Expect, Op, Outcome, Put, Record, Write

# How many of the oldest records each new one looks at: whether they have expired, and how much they have spent.
_SWEPT: Final = 2
_MIN_RANKED: Final = 4
_MAX_RANKED: Final = 64
# Full ones are a rank of their own.
_RANKS: Final = 9
# One in so many of all records, those written last, is driven out by none of the others however much they have spent.
_RECENT_SHARE: Final = 4
_NOTHING: Final[dict[str, int]] = {}


class Records:
    """At most `max_records` of them.

    While there is room they are kept in the order in which they were written. When there is none, the oldest are ranked
    by how much of their quotas they have spent, and of the lowest rank the oldest gives way: whoever has used up a
    quota is not forgotten for any number of others who have not.
    """

    __slots__ = ("_ranked", "_ranked_count", "_records", "evicted", "max_records")

    def __init__(self, max_records: int) -> None:
        self.max_records = max_records
        self.evicted = 0
        self._ranked_count = 0
        """How many of them are ranked."""
        self._records: OrderedDict[Key, _Stored] = OrderedDict()
        self._ranked: list[OrderedDict[Key, _Stored]] = [OrderedDict() for _ in range(_RANKS)]

    def apply(self, key: Key, write: Write, now: int) -> Outcome:
        stored = self._records.get(key)
        if stored is None and self._ranked_count:
            stored = self._find(key)
        fields = _NOTHING if stored is None else stored.fields
        for op in write.ops:
            if type(op) is Add:
                if op.at_most is not None and fields.get(op.field, 0) + op.amount > op.at_most:
                    return Outcome(False, dict(fields))
            elif type(op) is Expect and not _meets(op, fields.get(op.field)):
                return Outcome(False, dict(fields))
        if stored is None:
            stored = self._records[key] = _Stored()
            self._make_room(now)
        elif stored.rank < 0:
            self._records.move_to_end(key)
        else:
            self._take(key, stored)
            self._records[key] = stored
        touched = _change(write, stored.fields)
        stored.expires_at = write.expires_at
        if write.counts_until:
            stored.spent_by = write
        return Outcome(True, dict(stored.fields) if write.whole else touched)

    def apply_all(self, writes: Sequence[tuple[Key, Write]], now: int) -> list[Outcome]:
        records = [self.read(key) for key, _ in writes]
        held = [all(_holds(op, record) for op in write.ops) for (_, write), record in zip(writes, records, strict=True)]
        if all(held):
            for key, write in writes:
                self.apply(key, write, now)
        return [Outcome(holds, {} if holds else record) for holds, record in zip(held, records, strict=True)]

    def read(self, key: Key) -> Record:
        stored = self._records.get(key) or self._find(key)
        return {} if stored is None else dict(stored.fields)

    def delete(self, key: Key) -> None:
        if self._records.pop(key, None) is None and (stored := self._find(key)) is not None:
            self._take(key, stored)

    def items(self) -> Iterator[tuple[Key, Record]]:
        """Return all of them, the ones longest unwritten first, but for those that are ranked."""
        every = (*self._ranked, self._records)
        return ((key, dict(stored.fields)) for some in every for key, stored in some.items())

    def __len__(self) -> int:
        return len(self._records) + self._ranked_count

    def _find(self, key: Key) -> _Stored | None:
        for ranked in self._ranked:
            if (stored := ranked.get(key)) is not None:
                return stored
        return None

    def _take(self, key: Key, stored: _Stored) -> None:
        del self._ranked[stored.rank][key]
        stored.rank = -1
        self._ranked_count -= 1

    def _make_room(self, now: int) -> None:
        """A new record sweeps the oldest few, so that forgetting keeps pace with growth at a bounded price."""
        for _ in range(_SWEPT):
            oldest = next(iter(self._records))
            if self._records[oldest].expires_at * SECOND > now or len(self._records) == 1:
                break
            del self._records[oldest]
        if 2 * len(self) > self.max_records:  # most are ranked by the time that one has to give way
            self._rank_some(now)
            if len(self) > self.max_records:
                self._evict(now)

    def _rank_some(self, now: int) -> None:
        """A few; more of them while none is known that has spent less than half."""
        for looked in range(_MAX_RANKED):
            if len(self._records) <= max(1, self.max_records // _RECENT_SHARE):
                return
            if looked >= _MIN_RANKED and any(self._ranked[: _RANKS // 2]):
                return
            key, stored = self._records.popitem(last=False)
            stored.rank = _rank(stored, now)
            self._ranked[stored.rank][key] = stored
            self._ranked_count += 1

    def _evict(self, now: int) -> None:
        """The oldest of a rank whose spending does not count any more, else the oldest of the lowest rank."""
        oldest = [next(iter(ranked.items())) for ranked in self._ranked if ranked]
        key, stored = next((one for one in oldest if not _counts(one[1], now)), oldest[0])
        self._take(key, stored)
        self.evicted += 1


class _Stored:
    """One record; when it may be forgotten (epoch seconds), the last write that spent from it, its rank (-1: none)."""

    __slots__ = ("expires_at", "fields", "rank", "spent_by")

    def __init__(self) -> None:
        self.fields: dict[str, int] = {}
        self.expires_at = 0
        self.rank = -1
        self.spent_by: Write | None = None


def _counts(stored: _Stored, now: int) -> bool:
    return stored.spent_by is not None and stored.spent_by.counts_until * SECOND > now


def _rank(stored: _Stored, now: int) -> int:
    """By the part that is spent of the quota of which most is, as the last write that spent saw it."""
    write = stored.spent_by
    if write is None or not _counts(stored, now):
        return 0
    rank = 0
    # A bucket is spent from the moment of the write on, a counter from 0 on.
    starts = {op.field: op.low or (op.high or -1) + 1 for op in write.ops if type(op) is Expect}
    for op in write.ops:
        if (type(op) is Add or type(op) is Put) and op.at_most is not None and op.field in stored.fields:
            start = starts.get(op.field, 0)
            spent = stored.fields[op.field] - start
            rank = max(rank, min(_RANKS - 1, spent * (_RANKS - 1) // max(1, op.at_most - start)))
    return rank


def _holds(op: Op, record: Record) -> bool:
    if type(op) is Add:
        return op.at_most is None or record.get(op.field, 0) + op.amount <= op.at_most
    return type(op) is not Expect or _meets(op, record.get(op.field))


def _meets(op: Expect, value: int | None) -> bool:
    if value is None:
        return op.or_missing
    return (op.low is None or op.low <= value) and (op.high is None or value <= op.high)


def _change(write: Write, fields: dict[str, int]) -> dict[str, int]:
    touched: dict[str, int] = {}
    for op in write.ops:
        if type(op) is Add:
            fields[op.field] = touched[op.field] = fields.get(op.field, 0) + op.amount
        elif type(op) is Put:
            fields[op.field] = touched[op.field] = op.value
        elif type(op) is Drop:
            fields.pop(op.field, None)
    return touched
