"""Events, newest first and page by page: a user's, by a walk over the days; an action's, by its timeline."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from hashlib import blake2b
from typing import Any, Final

import msgspec

from ratelimit.clock import DAY, since_epoch
from ratelimit.cursor import MAX_PAGE, check_count, decode_cursor, encode_cursor
from ratelimit.errors import InvalidCursor, InvalidInput, OutOfRetention
from ratelimit.event import MAX_FUTURE_MS, MAX_ID_BYTES, RETENTION_DAYS, UsageEvent, check_status, resource_text
from ratelimit.names import MAX_ACTION_BYTES, UserId, check_action, check_user
from ratelimit.store.base import ANY, MAX_READ, EventFilter, EventStore, Position, TimelinePlace, day_of, position_of

TIMELINE_DAYS: Final = 7
"""That are looked at unless more are asked for: each costs several reads, also where it holds nothing."""
_MIN_READ: Final = 50
_DAYS_AT_ONCE: Final = 32
_DAY_MS: Final = DAY // 1000


class EventPage(msgspec.Struct, frozen=True):
    """Some of the events that a query is about."""

    events: tuple[UsageEvent, ...]
    """Newest first. Fewer than asked for, or none, where many others had to be read to find them."""
    cursor: str | None
    """Where the next page begins; None where this is the last one."""


@dataclass(frozen=True, slots=True)
class EventQuery:
    """Whose events, at `since` <= time < `until` (ms), of which action, and which of them. Made by `of`."""

    user: str
    since: int
    until: int
    action: str | None
    wanted: EventFilter
    after: Position | None
    digest: str

    @classmethod
    def of(
        cls,
        user: UserId,
        *,
        now: int,
        since: datetime | None,
        until: datetime | None,
        action: str | None = None,
        wanted: EventFilter = ANY,
        cursor: str | None = None,
    ) -> EventQuery:
        """Check a query; `now` is in microseconds. Raise `InvalidInput`, `OutOfRetention`, `InvalidCursor`."""
        user = check_user(user)
        if action is not None:
            check_action(action)
        first, last = range_of(since, until, now=now)
        digest = _digest(user, since, until, action, wanted)
        after = None
        if cursor is not None:
            after = Position(*_place_in(cursor, tuple[str, int, str, str], digest, "user, action"))
            # Where retention has moved on, it may lie before `first`: there is nothing left then.
            is_whole = len(after.action.encode()) <= MAX_ACTION_BYTES and len(after.id.encode()) <= MAX_ID_BYTES
            if not (0 <= after.at < last and is_whole):
                raise InvalidCursor(_DAMAGED)
        return cls(user, first, last, action, wanted, after, digest)

    def cursor(self, last: UsageEvent) -> str:
        return encode_cursor((self.digest, *position_of(last)))

    def wants(self, event: UsageEvent) -> bool:
        return self.action in (None, event.action) and self.wanted.wants(event)

    def days(self) -> Iterator[date]:
        newest = self.until - 1 if self.after is None else self.after.at
        day, first = day_of(newest), day_of(self.since)
        while day >= first and newest >= self.since:
            yield day
            day -= timedelta(days=1)


async def page_of(store: EventStore, query: EventQuery, limit: int) -> EventPage:
    """Return up to `limit` of the `MAX_READ` events that come next, or a few more. Raise `StoreUnavailable`."""
    check_count("limit", limit, MAX_PAGE)
    found: list[UsageEvent] = []
    read = 0
    async for events in _pages(store, query, limit + 1):
        for event in filter(query.wants, events):
            if len(found) == limit:
                return EventPage(tuple(found), query.cursor(found[-1]))
            found.append(event)
        read += len(events)
        if read >= MAX_READ and events:
            return EventPage(tuple(found), query.cursor(events[-1]))
    return EventPage(tuple(found), None)


async def walk(store: EventStore, query: EventQuery) -> AsyncIterator[UsageEvent]:
    async for events in _pages(store, query, MAX_PAGE):
        for event in filter(query.wants, events):
            yield event


async def _pages(store: EventStore, query: EventQuery, at_once: int) -> AsyncIterator[Sequence[UsageEvent]]:
    """Yield all events of the range, wanted or not, newest first, read `at_once` at a time.

    As long as days hold little, more of them are read side by side, twice as many each time: somebody who was last here
    three months ago costs seven round trips, and not ninety.
    """
    at_once = max(at_once, _MIN_READ)

    async def read(day: date, after: Position | None) -> Sequence[UsageEvent]:
        return await store.page(query.user, day, since=query.since, until=query.until, limit=at_once, after=after)

    days, after, width = deque(query.days()), query.after, 1
    while days:
        group = [days.popleft() for _ in range(min(width, len(days)))]
        pages = await asyncio.gather(*(read(day, after) for day in group), return_exceptions=True)
        after, width = None, min(2 * width, _DAYS_AT_ONCE)
        for day, events in zip(group, pages, strict=True):
            if isinstance(events, BaseException):
                raise events
            yield events
            while len(events) == at_once:
                width = 1
                events = await read(day, position_of(events[-1]))
                yield events


async def timeline_of(
    store: EventStore,
    action: str,
    *,
    now: int,
    since: datetime | None,
    until: datetime | None,
    wanted: EventFilter,
    limit: int,
    cursor: str | None,
) -> EventPage:
    """Return a page of an action's events of all users, without `since` of the last `TIMELINE_DAYS` before `until`.

    Raise as `EventQuery.of`, and `StoreUnavailable`.
    """
    check_action(action)
    check_count("limit", limit, MAX_PAGE)
    first, last = range_of(since, until, now=now)
    if since is None:
        first = max(first, min(last, now // 1000) - TIMELINE_DAYS * _DAY_MS)
    digest = _digest("timeline", since, until, action, wanted)
    below = end = TimelinePlace(last, 0)
    if cursor is not None:
        below = TimelinePlace(*_place_in(cursor, tuple[str, int, int], digest, "action"))
        if not (0 <= below.at <= last and 0 <= below.tie < 1 << 56):
            raise InvalidCursor(_DAMAGED)
    page = await store.timeline(action, since=first, below=min(below, end), limit=limit, wanted=wanted)
    return EventPage(tuple(page.events), page.rest and encode_cursor((digest, *page.rest)))


def event_filter(allowed: bool | None, status: int | None, resource: str | None) -> EventFilter:
    """Return the filter. Raise `InvalidInput` for what no event can have."""
    if allowed is not None and type(allowed) is not bool:
        raise InvalidInput(f"allowed must be True, False or None, not {allowed!r}")
    if status is not None:
        check_status(status)
    return EventFilter(allowed, status, None if resource is None else resource_text(resource))


def _digest(of: str, since: datetime | None, until: datetime | None, *others: object) -> str:
    asked = repr((of, since and since.timestamp(), until and until.timestamp(), *others))
    return blake2b(asked.encode(), digest_size=9).hexdigest()


def range_of(since: datetime | None, until: datetime | None, *, now: int) -> tuple[int, int]:
    """Return what is asked for in milliseconds, `until` excluded; by default all that is kept.

    `now` is in microseconds. Raise `InvalidInput`, `OutOfRetention`.
    """
    now //= 1000
    # One day of grace, for "the last 90 days" asked a moment ago.
    oldest, newest = now - (RETENTION_DAYS + 1) * _DAY_MS, now + MAX_FUTURE_MS + 1
    first = oldest if since is None else _ms("since", since)
    last = newest if until is None else _ms("until", until)
    if since is not None and until is not None and first > last:
        raise InvalidInput(f"since ({since}) must not be later than until ({until})")
    if since is not None and first < oldest:
        raise OutOfRetention(f"since is {since}, and events are kept for {RETENTION_DAYS} days")
    if until is not None and last < oldest:
        raise OutOfRetention(f"until is {until}, and events are kept for {RETENTION_DAYS} days")
    last = min(last, newest)
    return min(first, last), last


def _ms(name: str, time: object) -> int:
    if not isinstance(time, datetime) or time.utcoffset() is None:
        raise InvalidInput(f"{name} must be an aware datetime, as in datetime(2026, 1, 5, tzinfo=UTC), not {time!r}")
    return -(-since_epoch(time) // 1000)


def _place_in(cursor: str, kind: type[tuple[Any, ...]], digest: str, what: str) -> tuple[Any, ...]:
    query, *place = decode_cursor(cursor, kind)
    if query != digest:
        raise InvalidCursor(f"the cursor is from another query: repeat {what}, since, until and the filters with it")
    return tuple(place)


_DAMAGED: Final = "the cursor is damaged; take `page.cursor` as it is, or start without one"
