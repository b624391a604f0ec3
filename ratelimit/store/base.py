"""The contract of a store: the `Write` it runs, the events it keeps, the scans over all of it.

`tests/store/` holds every implementation to it. What a method's name and types do not say is said here, and not again
where it is implemented.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, date, datetime
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

import msgspec

from ratelimit.cursor import Page
from ratelimit.event import UsageEvent
from ratelimit.event_id import made_at
from ratelimit.names import Key

if TYPE_CHECKING:
    from ratelimit.store.directory import DirectoryStore

T = TypeVar("T")

# Counters: a record is a flat mapping of field names to integers. Every store runs the same `Write` with the same
# outcome; a differential test holds them to it.

Record: TypeAlias = Mapping[str, int]


class Add(msgspec.Struct, frozen=True, gc=False):
    """`field += amount`, a missing field counting as 0; with `at_most`, only if the sum stays at or below it."""

    field: str
    amount: int
    at_most: int | None = None


class Put(msgspec.Struct, frozen=True, gc=False):
    """`field = value`. `at_most` is no condition: it says what the most is that is ever put there."""

    field: str
    value: int
    at_most: int | None = None


class Drop(msgspec.Struct, frozen=True, gc=False):
    """Remove the field, if it is there."""

    field: str


class Expect(msgspec.Struct, frozen=True, gc=False):
    """Only if `low <= field <= high` (either bound may be left open), or the field is missing and that is fine."""

    field: str
    low: int | None = None
    high: int | None = None
    or_missing: bool = False


Op: TypeAlias = Add | Put | Drop | Expect


class Write(msgspec.Struct, frozen=True, eq=False):
    """Operations that apply all or none. Each field is changed by at most one of them, and may be expected by one more.

    Compared by identity, so that a store may keep what it prepared for one that `recurs`.
    """

    ops: tuple[Op, ...]
    expires_at: int
    """Epoch seconds after which the record may be forgotten by garbage collection."""
    whole: bool = False
    """Ask for the whole record after the write, not only for what was touched."""
    counts_until: int = 0
    """Epoch seconds after which what it spends does not count any more; 0 where it spends nothing. For a store that has
    to choose what to forget first: each field that it spends from says by `at_most` how much there is."""
    recurs: bool = False
    """Whether this very object is going to be used again."""


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """What a `Write` did: when applied, the new values of the touched fields (of all of them with `Write.whole`);
    when refused, the whole record as it is, untouched."""

    applied: bool
    record: Record


MAX_WRITES_AT_ONCE: Final = 100
"""As many as DynamoDB takes in a transaction, and reads at once."""


@runtime_checkable
class Store(Protocol):
    """Where the counters live: one record per user and action. Safe to use from many tasks of one event loop.

    Every method but `close` may raise `StoreUnavailable`, and nothing else, when the store gives no usable answer.
    """

    async def open(self) -> None:
        """Make ready; harmless when it is already. Raises `StoreMisconfigured` where waiting would not help."""

    async def close(self) -> None:
        """Let go of connections; harmless when closed. `open` may be called again."""

    async def apply(self, key: Key, write: Write, *, now: int) -> Outcome:
        """Run the write, atomically against every other process. `now` (µs) only guides garbage collection.

        After `StoreUnavailable` the write may have been applied, or not; after `StoreThrottled` it was not.
        """

    async def apply_all(self, writes: Sequence[tuple[Key, Write]], *, now: int) -> Sequence[Outcome]:
        """Run up to `MAX_WRITES_AT_ONCE` writes of different keys, all or none, atomically against every other process.

        An outcome that is not `applied` tells why none was: its conditions did not hold, and that is the record. Of the
        others nothing is told. After `StoreUnavailable` all of them may have been applied, or none.
        """

    async def read(self, key: Key) -> Record:
        """Return the whole record, strongly consistent; empty where there is none."""

    async def read_all(self, keys: Sequence[Key]) -> Sequence[Record]:
        """Read up to `MAX_WRITES_AT_ONCE` records, in their order, as `read` does each of them."""

    async def delete(self, key: Key) -> None:
        """Forget the whole record, totals included."""


# Usage events. An event is found by user, UTC day and position. The position is a function of the event, so writing it
# again changes nothing. Its id was made for it (`UsageEvent.placed_by_id`), or else the store remembers where the id
# was first seen: whatever comes later under the same id, of the same user, is that first event again, as long as that
# is kept.

MAX_EVENTS_PER_PUT: Final = 25


class Position(NamedTuple):
    """Where an event lies among those of its user and day."""

    at: int
    action: str
    id: str


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events are wanted; None is any."""

    allowed: bool | None = None
    status: int | None = None
    resource: str | None = None

    def wants(self, event: UsageEvent) -> bool:
        return (
            self.allowed in (None, event.allowed)
            and self.status in (None, event.status)
            and self.resource in (None, event.resource)
        )


ANY: Final = EventFilter()


class TimelinePlace(NamedTuple):
    """Where an event lies among those of its action, of all users: when, and in which order among those of that
    millisecond. None has two, and no two have the same."""

    at: int
    tie: int


class TimelinePage(NamedTuple):
    """Events of an action, newest first, and the place after which there may be more; None where there are none."""

    events: Sequence[UsageEvent]
    rest: TimelinePlace | None


MAX_READ: Final = 10_000
"""Events that are looked at for one page, or a few more: 10 MB, of which a filter may leave nothing."""


class EventStore(Protocol):
    """Every method may raise `StoreUnavailable`, and nothing else, when the store gives no usable answer."""

    async def put(self, events: Sequence[UsageEvent], *, timelines: Collection[str] = ()) -> Sequence[UsageEvent]:
        """Write up to `MAX_EVENTS_PER_PUT`, and return those that the store did not take: they may be put again.

        Those of the actions in `timelines` are found by `timeline` as well. After `StoreUnavailable` any of them may
        have been written.
        """

    async def timeline(
        self, action: str, *, since: int, below: TimelinePlace, limit: int, wanted: EventFilter = ANY
    ) -> TimelinePage:
        """Return up to `limit` events of an action, of all users, from `since` (ms) on, and below a place.

        It looks at some `MAX_READ` events at most, and may miss what was written in the last moments.
        """

    async def find(self, events: Sequence[UsageEvent]) -> Sequence[UsageEvent | None]:
        """Return, of up to `MAX_EVENTS_PER_PUT`, what is kept under the id of each already; None where nothing is.

        An id that was made for its event is looked for at its own time and with the action that the event has.
        """

    async def page(
        self, user: str, day: date, *, since: int, until: int, limit: int, after: Position | None = None
    ) -> Sequence[UsageEvent]:
        """Return events of a user's UTC day at `since` <= at < `until` (ms), newest first, beginning after a position.

        Fewer than `limit` means that there are no more. Sees all that was written before.
        """

    async def actions(self, user: str, day: date) -> Set[str]:
        """Return the actions of the events of a user's UTC day."""

    async def erase(self, user: str, day: date) -> int:
        """Delete the events of a user's UTC day; return how many there were. Harmless when repeated."""

    async def forget(self, user: str) -> int:
        """Delete what is remembered of a user's event ids; return how many there were."""


def position_of(event: UsageEvent) -> Position:
    return Position(event.at_ms, event.action, event.id)


def places_of(event: UsageEvent) -> list[Position]:
    """Return where an event lies whose id nobody has noted: at its own time, or at the one that the id was made for."""
    made = made_at(event.id)
    moments = [event.at_ms] if made is None or made == event.at_ms else [made, event.at_ms]
    return [Position(at, event.action, event.id) for at in moments]


def placed(event: UsageEvent, position: Position) -> UsageEvent:
    """Return the event at the position where its id was first seen."""
    if position == position_of(event):
        return event
    return msgspec.structs.replace(event, at_ms=position.at, action=position.action)


def timeline_place(event: UsageEvent) -> TimelinePlace:
    """Return where the event belongs in its action's timeline."""
    digest = blake2b(f"{len(event.user)}:{event.user}{event.id}".encode(), digest_size=7).digest()
    return TimelinePlace(event.at_ms, int.from_bytes(digest))


def day_of(at: int) -> date:
    return datetime.fromtimestamp(at // 1000, UTC).date()


# Scans read the whole table, whoever it belongs to. They come in pages, each with a cursor to go on from, also in
# another process and another day. What is there all the while is found exactly once; what comes or goes meanwhile may
# be found or not.

SCAN_PAGE: Final = 1000
"""Items looked at for one page, those that are filtered out included."""
MAX_PARTS: Final = 64


@dataclass(frozen=True, slots=True)
class Part:
    """One of the parts that a scan may be divided into, to be read side by side."""

    index: int = 0
    of: int = 1


WHOLE: Final = Part()


class Scans(Protocol):
    """Both raise `InvalidCursor` for a cursor that is damaged, and `StoreUnavailable`."""

    async def events(
        self, *, since: int, until: int, cursor: str | None = None, part: Part = WHOLE
    ) -> Page[UsageEvent]:
        """Return events at `since` <= at < `until` (ms), of all users, in no order; also the latest written."""

    async def records(
        self, *, field: str | None = None, cursor: str | None = None, part: Part = WHOLE
    ) -> Page[tuple[Key, Record]]:
        """Return the counters of all users and actions; with `field`, of those that have it, that one field."""


Ask: TypeAlias = Callable[[Part, str | None], Awaitable[Page[T]]]
"""A question that is put again for every page: `ask(part, cursor)`."""


async def each_part_page(
    ask: Ask[T], cursors: Mapping[int, str | None], *, of: int
) -> AsyncGenerator[tuple[int, Page[T]], None]:
    """Yield the pages of the parts that are left, side by side, as they come; `cursors` says where each part begins.

    The next page of a part is on its way while one is used, and never more than that: at most two pages a part are in
    memory. Use it inside of `contextlib.aclosing`.
    """
    asked: dict[asyncio.Task[Page[T]], int] = {}

    def ask_for(index: int, cursor: str | None) -> None:
        asked[asyncio.ensure_future(ask(Part(index, of), cursor))] = index

    try:
        for index, cursor in cursors.items():
            ask_for(index, cursor)
        while asked:
            done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                index, page = asked.pop(task), task.result()
                if page.cursor is not None:
                    ask_for(index, page.cursor)
                yield index, page
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def first_cursors(parts: int) -> dict[int, str | None]:
    """Return the cursors for `each_part_page` from the beginning of all parts."""
    return dict.fromkeys(range(parts))


# All of it: what the one table of DynamoDB holds, and any store that is to stand in for it.

Trace: TypeAlias = Literal["events", "event_ids", "counters", "entries", "identities"]
"""What a store may hold of a user: usage events, notes of their ids, counters, the entry in the directory, and what
finds that."""


class TableStore(Store, Protocol):
    """A store that holds all that the one table does: the counters, the usage events, the users and plans.

    Its parts are opened and closed with it.
    """

    @property
    def events(self) -> EventStore: ...

    @property
    def directory(self) -> DirectoryStore: ...

    @property
    def scans(self) -> Scans:
        """All of the events and counters, whoever they belong to."""

    async def erase(self, users: Collection[str]) -> Mapping[Trace, int]:
        """Delete everything of whoever goes by these names, however old and of whatever action; how many there were.

        It is found by reading all that there is. Harmless when repeated. Raises `StoreUnavailable`.
        """
