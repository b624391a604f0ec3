"""Stores on top of another one: they hand on what they are asked, and change what is theirs to change."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from datetime import date
from typing import TypeVar

from ratelimit.cursor import Page
from ratelimit.event import UsageEvent
from ratelimit.names import Key
from ratelimit.store.base import (
    ANY,
    EventFilter,
    EventStore,
    Outcome,
    Position,
    Record,
    Scans,
    Store,
    TableStore,
    TimelinePage,
    TimelinePlace,
    Trace,
    Write,
)
from ratelimit.store.directory import DirectoryStore, Entry, Identity

T = TypeVar("T", bound=Entry)


class DelegatingStore:
    """A `TableStore` that does everything as `inner` does it."""

    def __init__(self, inner: TableStore) -> None:
        self.inner = inner
        self.events: EventStore = inner.events
        self.directory: DirectoryStore = inner.directory

    @property
    def scans(self) -> Scans:
        return self.inner.scans

    async def open(self) -> None:
        await self.inner.open()

    async def close(self) -> None:
        await self.inner.close()

    async def apply(self, key: Key, write: Write, *, now: int) -> Outcome:
        return await self.inner.apply(key, write, now=now)

    async def apply_all(self, writes: Sequence[tuple[Key, Write]], *, now: int) -> Sequence[Outcome]:
        return await self.inner.apply_all(writes, now=now)

    async def read(self, key: Key) -> Record:
        return await self.inner.read(key)

    async def read_all(self, keys: Sequence[Key]) -> Sequence[Record]:
        return await self.inner.read_all(keys)

    async def delete(self, key: Key) -> None:
        await self.inner.delete(key)

    async def erase(self, users: Collection[str]) -> Mapping[Trace, int]:
        return await self.inner.erase(users)


class DelegatingEventStore:
    """An `EventStore` that does everything as `inner` does it."""

    def __init__(self, inner: EventStore) -> None:
        self.inner = inner

    async def put(self, events: Sequence[UsageEvent], *, timelines: Collection[str] = ()) -> Sequence[UsageEvent]:
        return await self.inner.put(events, timelines=timelines)

    async def timeline(
        self, action: str, *, since: int, below: TimelinePlace, limit: int, wanted: EventFilter = ANY
    ) -> TimelinePage:
        return await self.inner.timeline(action, since=since, below=below, limit=limit, wanted=wanted)

    async def find(self, events: Sequence[UsageEvent]) -> Sequence[UsageEvent | None]:
        return await self.inner.find(events)

    async def page(
        self, user: str, day: date, *, since: int, until: int, limit: int, after: Position | None = None
    ) -> Sequence[UsageEvent]:
        return await self.inner.page(user, day, since=since, until=until, limit=limit, after=after)

    async def actions(self, user: str, day: date) -> Set[str]:
        return await self.inner.actions(user, day)

    async def erase(self, user: str, day: date) -> int:
        return await self.inner.erase(user, day)

    async def forget(self, user: str) -> int:
        return await self.inner.forget(user)


class DelegatingDirectoryStore:
    """A `DirectoryStore` that does everything as `inner` does it."""

    def __init__(self, inner: DirectoryStore) -> None:
        self.inner = inner

    async def read(self, kind: type[T], name: str) -> T | None:
        return await self.inner.read(kind, name)

    async def find(self, identity: Identity) -> str | None:
        return await self.inner.find(identity)

    async def page(
        self, kind: type[T], *, plan: str | None = None, limit: int = 100, cursor: str | None = None
    ) -> Page[T]:
        return await self.inner.page(kind, plan=plan, limit=limit, cursor=cursor)

    async def replace(self, old: Entry | None, new: Entry | None, *, now: int) -> bool:
        return await self.inner.replace(old, new, now=now)


def layers(store: Store) -> Iterator[Store]:
    """Yield the store, and each that it stands on, down to the one that decides."""
    yield store
    while isinstance(store, DelegatingStore):
        store = store.inner
        yield store
