"""The embedded store: dicts, for one process. Nothing to set up, nothing that can fail, nothing kept after it ends."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from datetime import date
from heapq import nsmallest
from typing import Any, Final, Generic, TypeAlias, TypeVar, cast
from zlib import crc32

from ratelimit.clock import DAY
from ratelimit.cursor import MAX_PAGE, Page, check_count, decode_cursor, encode_cursor
from ratelimit.errors import InvalidInput
from ratelimit.event import UsageEvent
from ratelimit.names import Key
from ratelimit.store.base import (
    ANY,
    SCAN_PAGE,
    WHOLE,
    EventFilter,
    Outcome,
    Part,
    Position,
    Record,
    TimelinePage,
    TimelinePlace,
    Trace,
    Write,
    placed,
    places_of,
    position_of,
    timeline_place,
)
from ratelimit.store.directory import (
    Entry,
    Identity,
    IdentityTaken,
    User,
    check_pair,
    decode_place,
    encode_place,
    name_of,
    next_version,
)
from ratelimit.store.records import Records

T = TypeVar("T")
E = TypeVar("E", bound=Entry)
P = TypeVar("P", bound=tuple[Any, ...])

DEFAULT_MAX_KEYS: Final = 100_000
DEFAULT_MAX_EVENTS: Final = 100_000


class MemoryStore:
    """Records in this process's memory, bounded to `max_keys` of them.

    Expired records go as new writes come. When it is full, of the records that have spent the smallest part of their
    quotas the one longest unwritten gives way: a limited user stays limited, however many others there are who have
    spent less. What gave way starts afresh: `evicted` counts it, and should stay 0 where every quota has to hold.
    """

    def __init__(self, *, max_keys: int = DEFAULT_MAX_KEYS) -> None:
        _check_bound("max_keys", max_keys)
        self.events = MemoryEventStore()
        self.directory = MemoryDirectoryStore()
        self.records = Records(max_keys)
        """What it holds, for those who need not wait."""

    @property
    def scans(self) -> MemoryScans:
        return MemoryScans(self.events, self.records.items)

    @property
    def max_keys(self) -> int:
        return self.records.max_records

    @property
    def evicted(self) -> int:
        """Records that gave way though they had not expired."""
        return self.records.evicted

    def clear(self) -> None:
        """Forget all counters and events. Users and plans stay."""
        for key, _ in list(self.records.items()):
            self.records.delete(key)
        self.events.clear()

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        """Keep the records: they end with the process."""

    async def apply(self, key: Key, write: Write, *, now: int) -> Outcome:
        return self.records.apply(key, write, now)

    async def apply_all(self, writes: Sequence[tuple[Key, Write]], *, now: int) -> Sequence[Outcome]:
        return self.records.apply_all(writes, now)

    async def read(self, key: Key) -> Record:
        return self.records.read(key)

    async def read_all(self, keys: Sequence[Key]) -> Sequence[Record]:
        return [self.records.read(key) for key in keys]

    async def delete(self, key: Key) -> None:
        self.records.delete(key)

    async def erase(self, users: Collection[str]) -> Mapping[Trace, int]:
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


class MemoryEventStore:
    """Events in this process's memory. When there are `max_events`, the one written first gives way: see `evicted`.

    What is kept for an event is of plain tuples, texts and numbers, which the garbage collector does not look through
    again and again, as it would 100,000 lists.
    """

    def __init__(self, *, max_events: int = DEFAULT_MAX_EVENTS) -> None:
        _check_bound("max_events", max_events)
        self.max_events = max_events
        self.evicted = 0
        self._events: OrderedDict[_EventKey, UsageEvent] = OrderedDict()
        self._users: dict[str, _Sorted[_EventKey]] = {}
        self._timelines: dict[str, _Sorted[_TimelineEntry]] = {}
        self._seen: dict[str, dict[str, Position]] = {}

    async def put(self, events: Sequence[UsageEvent], *, timelines: Collection[str] = ()) -> Sequence[UsageEvent]:
        for event in events:
            first = event if event.placed_by_id else self._first(event)
            key = (first.user, first.at_ms, first.action, first.id)
            if key not in self._events:
                self._add(key, first)
                if first.action in timelines:
                    self._timelines.setdefault(first.action, _Sorted()).add(_timeline_entry(first))
                if len(self._events) > self.max_events:
                    self._evict()
        return ()

    async def timeline(
        self, action: str, *, since: int, below: TimelinePlace, limit: int, wanted: EventFilter = ANY
    ) -> TimelinePage:
        entries = self._timelines.get(action, _Sorted()).between((since,), below)
        found: list[UsageEvent] = []
        for at, _, user, event_id in reversed(entries):
            event = self._events[user, at, action, event_id]
            if wanted.wants(event):
                if len(found) == limit:
                    return TimelinePage(found, timeline_place(found[-1]))
                found.append(event)
        return TimelinePage(found, None)

    async def find(self, events: Sequence[UsageEvent]) -> Sequence[UsageEvent | None]:
        return [self._found(event) for event in events]

    async def page(
        self, user: str, day: date, *, since: int, until: int, limit: int, after: Position | None = None
    ) -> Sequence[UsageEvent]:
        first, end = _day(user, day)
        end = min(end, (user, until) if after is None else min((user, until), (user, *after)))
        keys = self._of(user).between(max(first, (user, since)), end, last=limit)
        return [self._events[key] for key in reversed(keys)]

    async def actions(self, user: str, day: date) -> Set[str]:
        return {action for _, _, action, _ in self._of(user).between(*_day(user, day))}

    async def erase(self, user: str, day: date) -> int:
        gone = self._of(user).cut(*_day(user, day))
        if not self._of(user):
            self._users.pop(user, None)
        return self._forget(gone)

    async def forget(self, user: str) -> int:
        return len(self._seen.pop(user, {}))

    def clear(self) -> None:
        for kept in (self._events, self._users, self._seen, self._timelines):
            kept.clear()

    def erase_all(self, users: Collection[str]) -> tuple[int, int]:
        """Delete all events of these users, and what is remembered of ids; return how many of each there were."""
        gone = sum(self._forget(list(self._users.pop(user, ()))) for user in users)
        return gone, sum(len(self._seen.pop(user, {})) for user in users)

    def __len__(self) -> int:
        return len(self._events)

    def __iter__(self) -> Iterator[UsageEvent]:
        return iter(self._events.values())

    def _of(self, user: str) -> _Sorted[_EventKey]:
        return self._users.get(user, _Sorted())

    def _found(self, event: UsageEvent) -> UsageEvent | None:
        seen = self._seen.get(event.user, {}).get(event.id)
        for position in places_of(event) if seen is None else (seen,):
            found = self._events.get((event.user, *position))
            if found is not None and found.expires_at >= event.at_ms // 1000:
                return found
        return None

    def _first(self, event: UsageEvent) -> UsageEvent:
        seen = self._seen.setdefault(event.user, {})
        first = placed(event, seen.get(event.id, position_of(event)))
        if first.expires_at < event.at_ms // 1000:
            first = event
        seen[event.id] = position_of(first)
        return first

    def _add(self, key: _EventKey, event: UsageEvent) -> None:
        self._events[key] = event
        keys = self._users.get(event.user)
        if keys is None:
            keys = self._users[event.user] = _Sorted()
        keys.add(key)

    def _forget(self, keys: Sequence[_EventKey]) -> int:
        for key in keys:
            self._drop_time(self._events.pop(key))
        return len(keys)

    def _evict(self) -> None:
        key, gone = self._events.popitem(last=False)
        self.evicted += 1
        if self._users[gone.user].remove(key):
            del self._users[gone.user]
        self._drop_time(gone)
        if (seen := self._seen.get(gone.user)) is not None:
            seen.pop(gone.id, None)
            if not seen:
                del self._seen[gone.user]

    def _drop_time(self, event: UsageEvent) -> None:
        timeline = self._timelines.get(event.action)
        if timeline is not None and timeline.remove(_timeline_entry(event)):
            del self._timelines[event.action]


_EventKey: TypeAlias = tuple[str, int, str, str]
"""The user of an event, and where it lies: its time, action and id."""
_TimelineEntry: TypeAlias = tuple[int, int, str, str]
_DAY_MS: Final = DAY // 1000
# Of what is in order one part may be gone: it takes memory until all others are moved.
_GONE_PARTS: Final = 16
_EPOCH: Final = date(1970, 1, 1)


def _day(user: str, day: date) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return what is before all keys of a user's day, and after them."""
    start = (day - _EPOCH).days * _DAY_MS
    return (user, start), (user, start + _DAY_MS)


def _timeline_entry(event: UsageEvent) -> _TimelineEntry:
    return (*timeline_place(event), event.user, event.id)


class _Sorted(Generic[P]):
    """Where events lie, in order. The first goes without a move of all others, the last comes without a search."""

    __slots__ = ("_gone", "_positions")

    def __init__(self) -> None:
        self._positions: list[P] = []
        self._gone = 0
        """So many, from the first, are not there any more."""

    def add(self, position: P) -> None:
        positions = self._positions
        if not positions or positions[-1] < position:
            positions.append(position)
        else:
            insort(positions, position, lo=self._gone)

    def remove(self, position: P) -> bool:
        """Return whether it was the last; leave all as they are where it is not there."""
        positions, place = self._positions, self._gone
        if positions[place] != position:
            place = bisect_left(positions, position, lo=place)
            if positions[place : place + 1] != [position]:
                return False
        if place == self._gone:
            self._gone += 1
            if _GONE_PARTS * self._gone > len(positions):
                del positions[: self._gone]
                self._gone = 0
        else:
            del positions[place]
        return self._gone == len(positions)

    def between(self, low: tuple[Any, ...], high: tuple[Any, ...], *, last: int | None = None) -> Sequence[P]:
        """Return those with `low` <= position < `high`; of these only so many of the `last`."""
        positions: list[Any] = self._positions
        start = bisect_left(positions, low, lo=self._gone)
        end = bisect_left(positions, high, lo=start)
        return positions[start if last is None else max(start, end - last) : end]

    def cut(self, low: tuple[Any, ...], high: tuple[Any, ...]) -> Sequence[P]:
        cut = self.between(low, high)
        if cut:
            start = bisect_left(self._positions, cut[0], lo=self._gone)
            del self._positions[start : start + len(cut)]
        return cut

    def __len__(self) -> int:
        return len(self._positions) - self._gone

    def __iter__(self) -> Iterator[P]:
        return iter(self._positions[self._gone :])


class MemoryDirectoryStore:
    """Users and plans on dicts, for tests, and for an app that fills it when it starts.

    Holds what it is given, without a bound: entries are made by administrators.
    """

    def __init__(self) -> None:
        self._entries: dict[type[Any], dict[str, Entry]] = {}
        self._owners: dict[Identity, str] = {}

    async def read(self, kind: type[E], name: str) -> E | None:
        return cast("E | None", self._entries.get(kind, {}).get(name))

    async def find(self, identity: Identity) -> str | None:
        return self._owners.get(identity)

    async def page(
        self, kind: type[E], *, plan: str | None = None, limit: int = 100, cursor: str | None = None
    ) -> Page[E]:
        """In the order of names."""
        check_count("limit", limit, MAX_PAGE)
        listing = f"{kind.__name__}:{plan or ''}"
        after = None if cursor is None else decode_place(cursor, listing, parts=1)[0]
        found = [
            name
            for name, entry in sorted(self._entries.get(kind, {}).items())
            if (after is None or name > after) and (plan is None or (isinstance(entry, User) and entry.plan == plan))
        ]
        names = found[:limit]
        entries = tuple(cast(E, self._entries[kind][name]) for name in names)
        return Page(entries, encode_place(listing, names[-1]) if len(found) > len(names) else None)

    async def replace(self, old: Entry | None, new: Entry | None, *, now: int) -> bool:
        entry = check_pair(old, new)
        entries = self._entries.setdefault(type(entry), {})
        there = entries.get(name_of(entry))
        if (there and there.version) != (old and old.version):
            return False
        self._replace_identities(old, new)
        if new is None:
            del entries[name_of(entry)]
        else:
            entries[name_of(entry)] = replace(new, version=next_version(old, now))
        return True

    def erase(self, users: Collection[str]) -> tuple[int, int]:
        """Delete the entries of these users, and all that finds them; return how many of each there were."""
        entries = [name for name in self._entries.get(User, {}) if name in users]
        for name in entries:
            del self._entries[User][name]
        identities = [identity for identity, owner in self._owners.items() if owner in users]
        for identity in identities:
            del self._owners[identity]
        return len(entries), len(identities)

    def _replace_identities(self, old: Entry | None, new: Entry | None) -> None:
        before = set(old.identities) if isinstance(old, User) else set()
        after = new.identities if isinstance(new, User) else ()
        for identity in after:
            if isinstance(new, User) and self._owners.get(identity, new.id) != new.id:
                raise IdentityTaken(identity)
        for identity in before.difference(after):
            del self._owners[identity]
        if isinstance(new, User):
            self._owners.update(dict.fromkeys(after, new.id))


class MemoryScans:
    """The `scans` of a `MemoryStore`: in the order of users."""

    def __init__(self, events: MemoryEventStore, records: Callable[[], Iterable[tuple[Key, Record]]]) -> None:
        self._events = events
        self._records = records

    async def events(
        self, *, since: int, until: int, cursor: str | None = None, part: Part = WHOLE
    ) -> Page[UsageEvent]:
        found = {(event.user, event.at_ms, event.action, event.id): event for event in self._events}
        page, rest = _page(found, tuple[str, int, str, str], cursor, part)
        return Page(tuple(event for event in page if since <= event.at_ms < until), rest)

    async def records(
        self, *, field: str | None = None, cursor: str | None = None, part: Part = WHOLE
    ) -> Page[tuple[Key, Record]]:
        found = {tuple(key): (key, record) for key, record in self._records()}
        page, rest = _page(found, tuple[str, str], cursor, part)
        if field is not None:
            page = [(key, {field: record[field]}) for key, record in page if field in record]
        return Page(tuple(page), rest)


def _page(
    entries: Mapping[tuple[Any, ...], T], kind: type[tuple[Any, ...]], cursor: str | None, part: Part
) -> tuple[list[T], str | None]:
    """By key and not by number, so that what goes meanwhile makes nothing else skipped."""
    after = None if cursor is None else decode_cursor(cursor, kind)
    left = (
        key
        for key in entries
        if (after is None or key > after) and (part.of == 1 or crc32(key[0].encode()) % part.of == part.index)
    )
    keys = nsmallest(SCAN_PAGE + 1, left)
    rest = encode_cursor(keys[SCAN_PAGE - 1]) if len(keys) > SCAN_PAGE else None
    return [entries[key] for key in keys[:SCAN_PAGE]], rest


def _check_bound(name: str, bound: object) -> None:
    if type(bound) is not int or bound < 1:
        raise InvalidInput(f"{name} must be a whole number of at least 1, not {bound!r}")
