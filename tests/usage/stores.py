"""An event store that fails as told, and tells what was asked of it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TypeAlias

from ratelimit import MemoryStore, StoreUnavailable, UsageEvent
from ratelimit.store import MemoryEventStore

Fault: TypeAlias = Callable[["ScriptedEvents", Sequence[UsageEvent]], Awaitable[Sequence[UsageEvent]]]


class ScriptedEvents(MemoryEventStore):
    """The next `put`s run the faults in line, one each; then `always`, if there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.line: deque[Fault] = deque()
        self.always: Fault | None = None
        self.batches: list[int] = []
        self.looked_for = 0
        self.at_once = 0
        self.most_at_once = 0
        self._taken = asyncio.Event()

    async def put(self, events: Sequence[UsageEvent], *, timelines: Collection[str] = ()) -> Sequence[UsageEvent]:
        self.batches.append(len(events))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(0)
            fault = self.line.popleft() if self.line else self.always
            return await (self.take(events) if fault is None else fault(self, events))
        finally:
            self.at_once -= 1

    async def find(self, events: Sequence[UsageEvent]) -> Sequence[UsageEvent | None]:
        self.looked_for += len(events)
        return await super().find(events)

    async def take(self, events: Sequence[UsageEvent]) -> Sequence[UsageEvent]:
        self._taken.set()
        return await super().put(events)

    async def hold(self, count: int) -> None:
        """Returns when there are so many."""
        while len(self) < count:
            self._taken.clear()
            await self._taken.wait()


def scripted() -> tuple[MemoryStore, ScriptedEvents]:
    store, events = MemoryStore(), ScriptedEvents()
    store.events = events
    return store, events


async def healthy(store: ScriptedEvents, events: Sequence[UsageEvent]) -> Sequence[UsageEvent]:
    """As it should be."""
    return await store.take(events)


async def down(_: ScriptedEvents, events: Sequence[UsageEvent]) -> Sequence[UsageEvent]:
    """Refuses connections."""
    raise StoreUnavailable("down")


async def answer_lost(store: ScriptedEvents, events: Sequence[UsageEvent]) -> Sequence[UsageEvent]:
    """Takes them all, and says nothing."""
    await store.take(events)
    raise StoreUnavailable("no answer")


async def half(store: ScriptedEvents, events: Sequence[UsageEvent]) -> Sequence[UsageEvent]:
    """Takes every second one: the others are unprocessed."""
    await store.take(events[::2])
    return events[1::2]


async def never(_: ScriptedEvents, events: Sequence[UsageEvent]) -> Sequence[UsageEvent]:
    """Does not answer."""
    await asyncio.Event().wait()
    return ()
