"""The contract of a store, on one page. `docs` and the store suite (`tests/store/`) hold every implementation to it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from ratelimit.names import Key
from ratelimit.store.directory import DirectoryStore
from ratelimit.store.events import EventStore
from ratelimit.store.scans import Scans
from ratelimit.store.write import Outcome, Record, Write

Trace: TypeAlias = Literal["events", "event_ids", "counters", "entries", "identities"]
"""What a store may hold of a user: usage events, notes of their ids, counters, the entry in the directory, and what
finds that."""


@runtime_checkable
class Store(Protocol):
    """Where the counters live: one record per user and action. Safe to use from many tasks of one event loop.

    Every method but `close` may raise `StoreUnavailable`, and nothing else, when the store gives no usable answer.
    """

    async def open(self) -> None:
        """Make ready; harmless when it is already. Raises `StoreMisconfigured` where waiting would not help."""
        ...

    async def close(self) -> None:
        """Let go of connections; harmless when closed. `open` may be called again."""
        ...

    async def apply(self, key: Key, write: Write, *, now: int) -> Outcome:
        """Run the write, atomically against every other process. `now` (µs) only guides garbage collection.

        After `StoreUnavailable` the write may have been applied, or not; after `StoreThrottled` it was not.
        """
        ...

    async def read(self, key: Key) -> Record:
        """The whole record, strongly consistent; empty where there is none."""
        ...

    async def delete(self, key: Key) -> None:
        """Forget the whole record, totals included."""
        ...


class TableStore(Store, Protocol):
    """A store that holds all that the one table does: the counters, the usage events, the users and plans."""

    @property
    def events(self) -> EventStore:
        """The usage events. Opened and closed with the store."""
        ...

    @property
    def directory(self) -> DirectoryStore:
        """The users and plans. Opened and closed with the store."""
        ...

    @property
    def scans(self) -> Scans:
        """All of the events and counters, whoever they belong to. Opened and closed with the store."""
        ...

    async def erase(self, users: Collection[str]) -> Mapping[Trace, int]:
        """Delete everything of whoever goes by these names, however old and of whatever action; how many there were.

        It is found by reading all that there is. Harmless when repeated. Raises `StoreUnavailable`.
        """
        ...
