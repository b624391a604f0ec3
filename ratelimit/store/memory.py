"""The embedded store: a dict, for one process. Nothing to set up, nothing that can fail, nothing kept after it ends."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from ratelimit.errors import InvalidInput
from ratelimit.names import Key
from ratelimit.store.base import Trace
from ratelimit.store.directory import MemoryDirectoryStore
from ratelimit.store.events import MemoryEventStore
from ratelimit.store.records import Records
from ratelimit.store.scans import MemoryScans
from ratelimit.store.write import Outcome, Record, Write

DEFAULT_MAX_KEYS: Final = 100_000


class MemoryStore:
    """Records in this process's memory, bounded to `max_keys` of them.

    Expired records go as new writes come. When it is full, of the records that have spent the smallest part of their
    quotas the one longest unwritten gives way: a limited user stays limited, however many others there are who have
    spent less. What gave way starts afresh: `evicted` counts it, and should stay 0 where every quota has to hold.
    """

    def __init__(self, *, max_keys: int = DEFAULT_MAX_KEYS) -> None:
        if type(max_keys) is not int or max_keys < 1:
            raise InvalidInput(f"max_keys must be a whole number of at least 1, not {max_keys!r}")
        self.events = MemoryEventStore()
        self.directory = MemoryDirectoryStore()
        self.records = Records(max_keys)
        """What it holds, for those who need not wait."""

    @property
    def scans(self) -> MemoryScans:
        """See `TableStore.scans`."""
        return MemoryScans(self.events, self.records.items)

    @property
    def max_keys(self) -> int:
        """The bound."""
        return self.records.most

    @property
    def evicted(self) -> int:
        """Records that gave way though they had not expired."""
        return self.records.evicted

    async def open(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """Keeps its records: they end with the process."""

    async def apply(self, key: Key, write: Write, *, now: int) -> Outcome:
        """See `Store.apply`."""
        return self.records.apply(key, write, now)

    async def read(self, key: Key) -> Record:
        """See `Store.read`."""
        return self.records.read(key)

    async def delete(self, key: Key) -> None:
        """See `Store.delete`."""
        self.records.delete(key)

    async def erase(self, users: Collection[str]) -> Mapping[Trace, int]:
        """See `TableStore.erase`."""
        keys = [key for key, _ in self.records.items() if key.user in users]
        for key in keys:
            self.records.delete(key)
        entries, identities = self.directory.erase(users)
        events, event_ids = self.events.erase_all(users)
        return {
            "events": events,
            "event_ids": event_ids,
            "counters": len(keys),
            "entries": entries,
            "identities": identities,
        }

    def __len__(self) -> int:
        return len(self.records)
