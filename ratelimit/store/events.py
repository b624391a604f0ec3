"""Where usage events live: the `EventStore` contract, and the one that needs no set-up.

An event is found by user, UTC day and position. The position is a function of the event, so writing it again changes
nothing. Its id was made for it (`UsageEvent.placed_by_id`), or else the store remembers where the id was first seen:
whatever comes later under the same id, of the same user, is that first event again, as long as that is kept.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence, Set
from datetime import UTC, date, datetime
from typing import Final, NamedTuple, Protocol

import msgspec

from ratelimit.errors import InvalidInput
from ratelimit.event import UsageEvent

DEFAULT_MAX_EVENTS: Final = 100_000
MOST_AT_ONCE: Final = 25
"""Events in one `put`."""


class Position(NamedTuple):
    """Where an event lies among those of its user and day."""

    at: int
    action: str
    id: str


class EventStore(Protocol):
    """Every method may raise `StoreUnavailable`, and nothing else, when the store gives no usable answer."""

    async def put(self, events: Sequence[UsageEvent]) -> Sequence[UsageEvent]:
        """Write up to `MOST_AT_ONCE` events, and return those that the store did not take: they may be put again.

        After `StoreUnavailable` any of them may have been written.
        """
        ...

    async def page(
        self, user: str, day: date, *, since: int, until: int, limit: int, after: Position | None = None
    ) -> Sequence[UsageEvent]:
        """Events of a user's UTC day at `since` <= at < `until` (ms), newest first, beginning after a position.

        Fewer than `limit` means that there are no more. Sees all that was written before.
        """
        ...

    async def actions(self, user: str, day: date) -> Set[str]:
        """The actions of the events of a user's UTC day."""
        ...

    async def erase(self, user: str, day: date) -> int:
        """Delete the events of a user's UTC day; how many there were. Harmless when repeated."""
        ...

    async def forget(self, user: str) -> int:
        """Delete what is remembered of a user's event ids; how many there were."""
        ...


def position_of(event: UsageEvent) -> Position:
    """Where it belongs."""
    return Position(event.at_ms, event.action, event.id)


def placed(event: UsageEvent, position: Position) -> UsageEvent:
    """The event at the position where its id was first seen."""
    if position == position_of(event):
        return event
    return msgspec.structs.replace(event, at_ms=position.at, action=position.action)


def day_of(at: int) -> date:
    """The UTC day of a time in milliseconds."""
    return datetime.fromtimestamp(at // 1000, UTC).date()


class MemoryEventStore:
    """Events in this process's memory. When there are `max_events`, the one written first gives way: see `evicted`."""

    def __init__(self, *, max_events: int = DEFAULT_MAX_EVENTS) -> None:
        if type(max_events) is not int or max_events < 1:
            raise InvalidInput(f"max_events must be a whole number of at least 1, not {max_events!r}")
        self.max_events = max_events
        self.evicted = 0
        self._events: OrderedDict[tuple[str, Position], UsageEvent] = OrderedDict()
        self._days: dict[tuple[str, date], list[Position]] = {}
        self._seen: dict[str, dict[str, Position]] = {}

    async def put(self, events: Sequence[UsageEvent]) -> Sequence[UsageEvent]:
        """See `EventStore.put`."""
        for event in events:
            first = event if event.placed_by_id else self._first(event)
            if (first.user, position_of(first)) not in self._events:
                self._add(first)
        return ()

    async def page(
        self, user: str, day: date, *, since: int, until: int, limit: int, after: Position | None = None
    ) -> Sequence[UsageEvent]:
        """See `EventStore.page`."""
        positions = self._days.get((user, day), [])
        end = bisect_left(positions, (until, "", ""))
        if after is not None:
            end = min(end, bisect_left(positions, after))
        start = max(bisect_left(positions, (since, "", "")), end - limit)
        return [self._events[user, position] for position in reversed(positions[start:end])]

    async def actions(self, user: str, day: date) -> Set[str]:
        """See `EventStore.actions`."""
        return {position.action for position in self._days.get((user, day), [])}

    async def erase(self, user: str, day: date) -> int:
        """See `EventStore.erase`."""
        positions = self._days.pop((user, day), [])
        for position in positions:
            del self._events[user, position]
        return len(positions)

    async def forget(self, user: str) -> int:
        """See `EventStore.forget`."""
        return len(self._seen.pop(user, {}))

    def erase_all(self, users: Collection[str]) -> tuple[int, int]:
        """Delete all events of these users, and what is remembered of ids; how many of each there were."""
        gone = [(user, position) for user, position in self._events if user in users]
        for user, position in gone:
            del self._events[user, position]
            self._days.pop((user, day_of(position.at)), None)
        return len(gone), sum(len(self._seen.pop(user, {})) for user in users)

    def __len__(self) -> int:
        return len(self._events)

    def __iter__(self) -> Iterator[UsageEvent]:
        return iter(self._events.values())

    def _first(self, event: UsageEvent) -> UsageEvent:
        """The event at the position where its id was first seen."""
        seen = self._seen.setdefault(event.user, {})
        first = placed(event, seen.get(event.id, position_of(event)))
        if first.expires_at < event.at_ms // 1000:
            first = event
        seen[event.id] = position_of(first)
        return first

    def _add(self, event: UsageEvent) -> None:
        position = position_of(event)
        self._events[event.user, position] = event
        insort(self._days.setdefault((event.user, day_of(event.at_ms)), []), position)
        if len(self._events) > self.max_events:
            (user, oldest), gone = self._events.popitem(last=False)
            self.evicted += 1
            positions = self._days[user, day_of(gone.at_ms)]
            positions.remove(oldest)
            if not positions:
                del self._days[user, day_of(gone.at_ms)]
            seen = self._seen.get(user, {})
            seen.pop(oldest.id, None)
            if not seen:
                self._seen.pop(user, None)
