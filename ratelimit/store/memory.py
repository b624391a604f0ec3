"""The embedded store: a dict, for one process. Nothing to set up, nothing that can fail, nothing kept after it ends."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from ratelimit.errors import InvalidInput
from ratelimit.names import Key
from ratelimit.store.directory import MemoryDirectoryStore
from ratelimit.store.events import MemoryEventStore
from ratelimit.store.scans import MemoryScans
from ratelimit.store.write import Add, Drop, Expect, Outcome, Put, Record, Write

DEFAULT_MAX_KEYS: Final = 100_000
_SWEEP: Final = 2


class MemoryStore:
    """Records in this process's memory, bounded to `max_keys` of them.

    Expired records go as new writes come. When it is full, the record longest unwritten gives way, and with it what
    that user had spent: `evicted` counts those, and should stay 0 where every quota has to hold.
    """

    def __init__(self, *, max_keys: int = DEFAULT_MAX_KEYS) -> None:
        if type(max_keys) is not int or max_keys < 1:
            raise InvalidInput(f"max_keys must be a whole number of at least 1, not {max_keys!r}")
        self.max_keys = max_keys
        self.evicted = 0
        self.events = MemoryEventStore()
        self.directory = MemoryDirectoryStore()
        self._records: OrderedDict[Key, _Stored] = OrderedDict()

    @property
    def scans(self) -> MemoryScans:
        """See `TableStore.scans`."""
        return MemoryScans(self.events, lambda: ((key, dict(stored.fields)) for key, stored in self._records.items()))

    async def open(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """Keeps its records: they end with the process."""

    async def apply(self, key: Key, write: Write, *, now: int) -> Outcome:
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

    async def read(self, key: Key) -> Record:
        """See `Store.read`."""
        stored = self._records.get(key)
        return {} if stored is None else dict(stored.fields)

    async def delete(self, key: Key) -> None:
        """See `Store.delete`."""
        self._records.pop(key, None)

    def __len__(self) -> int:
        return len(self._records)

    def _make_room(self, now: int) -> None:
        """A new record sweeps the oldest few, so that forgetting keeps pace with growth at a bounded price."""
        for _ in range(_SWEEP):
            oldest = next(iter(self._records))
            if self._records[oldest].expires_at * 1_000_000 > now or len(self._records) == 1:
                break
            del self._records[oldest]
        if len(self._records) > self.max_keys:
            self._records.popitem(last=False)
            self.evicted += 1


class _Stored:
    """One record, and when it may be forgotten (epoch seconds)."""

    __slots__ = ("expires_at", "fields")

    def __init__(self) -> None:
        self.fields: dict[str, int] = {}
        self.expires_at = 0


_NOTHING: Final[dict[str, int]] = {}


def _holds(op: Add | Put | Drop | Expect, fields: dict[str, int]) -> bool:
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
