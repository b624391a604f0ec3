"""`Records`: what the embedded store remembers, and how a write changes it. Bounded; what has expired goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

from ratelimit.clock import SECOND
from ratelimit.names import Key
from ratelimit.store.write import Add, Drop, Expect, Op, Outcome, Put, Record, Write

_SWEEP: Final = 2
_NOTHING: Final[dict[str, int]] = {}


class Records:
    """At most `most` of them. See `MemoryStore`."""

    __slots__ = ("_records", "evicted", "most")

    def __init__(self, most: int) -> None:
        self.most = most
        self.evicted = 0
        self._records: OrderedDict[Key, _Stored] = OrderedDict()

    def apply(self, key: Key, write: Write, now: int) -> Outcome:
        """See `Store.apply`."""
        stored = self._records.get(key)
        fields = _NOTHING if stored is None else stored.fields
        for op in write.ops:
            if not _holds(op, fields):
                return Outcome(False, dict(fields))
        if stored is None:
            stored = self._records[key] = _Stored()
            self._make_room(now)
        else:
            self._records.move_to_end(key)
        touched = _change(write, stored.fields)
        stored.expires_at = write.expires_at
        return Outcome(True, dict(stored.fields) if write.whole else touched)

    def read(self, key: Key) -> Record:
        """A copy; empty where there is none."""
        stored = self._records.get(key)
        return {} if stored is None else dict(stored.fields)

    def delete(self, key: Key) -> None:
        """Harmless where there is none."""
        self._records.pop(key, None)

    def items(self) -> Iterator[tuple[Key, Record]]:
        """All of them, the one longest unwritten first."""
        return ((key, dict(stored.fields)) for key, stored in self._records.items())

    def __len__(self) -> int:
        return len(self._records)

    def _make_room(self, now: int) -> None:
        """A new record sweeps the oldest few, so that forgetting keeps pace with growth at a bounded price."""
        for _ in range(_SWEEP):
            oldest = next(iter(self._records))
            if self._records[oldest].expires_at * SECOND > now or len(self._records) == 1:
                break
            del self._records[oldest]
        if len(self._records) > self.most:
            self._records.popitem(last=False)
            self.evicted += 1


class _Stored:
    """One record, and when it may be forgotten (epoch seconds)."""

    __slots__ = ("expires_at", "fields")

    def __init__(self) -> None:
        self.fields: dict[str, int] = {}
        self.expires_at = 0


def _holds(op: Op, fields: dict[str, int]) -> bool:
    if type(op) is Add:
        return op.at_most is None or fields.get(op.field, 0) + op.amount <= op.at_most
    if type(op) is Expect:
        value = fields.get(op.field)
        if value is None:
            return op.or_missing
        return (op.low is None or op.low <= value) and (op.high is None or value <= op.high)
    return True


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
