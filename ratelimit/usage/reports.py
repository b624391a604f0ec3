"""`Reports`: what can be asked of a usage log. Events come from their rows, totals from the limiter's own counters."""

from __future__ import annotations

import asyncio
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from datetime import UTC, date, datetime, time, timedelta
from heapq import nlargest
from typing import Any, Final, NamedTuple, Self

import msgspec

from ratelimit.algorithms.fields import DAYS_KEPT, Per, day_field, utc_day
from ratelimit.algorithms.totals import kept_range, totals_of, utc_date
from ratelimit.clock import Clock
from ratelimit.cursor import Page, check_count, each_page
from ratelimit.errors import InvalidInput, InvalidUser, OutOfRetention, StoreThrottled, StoreUnavailable
from ratelimit.event import RETENTION_DAYS
from ratelimit.names import RESERVED_ACTION, Key, UserId, check_action, check_user
from ratelimit.retry import retry_store
from ratelimit.store.base import ANY, MAX_PARTS, EventFilter, Part, Record, TableStore, each_part_page, first_cursors
from ratelimit.store.directory import DirectoryStore, Plan, User
from ratelimit.usage.queries import EventPage, EventQuery, event_filter, page_of, timeline_of, walk

MAX_TOP: Final = 1000
DATE_RANGE: Final = RESERVED_ACTION
_MAX_ACTIONS: Final = 1000
_FLUSH_TIMEOUT_S: Final = 10.0
"""Seconds that an answer waits for events to be written, without seeing any written."""


class Reconciliation(msgspec.Struct, frozen=True):
    """One action's day, counted twice."""

    events: int
    """The cost of the events that were allowed, summed up."""
    total: int
    """The limiter's exact total."""

    @property
    def difference(self) -> int:
        """Return the units counted and not logged; below zero, logged and not counted (refunded, never checked)."""
        return self.total - self.events


class TopUser(NamedTuple):
    """A user, and the units used on the day."""

    user: str
    total: int


class Reports:
    """Every method may raise `StoreUnavailable`; those that take a user, `InvalidUser`."""

    def __init__(self, store: TableStore, actions: Iterable[str], clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._actions = dict.fromkeys(check_action(action) for action in actions)

    @property
    def actions(self) -> tuple[str, ...]:
        """Return the actions that totals are read for: those named at the start, and those that were kept since."""
        return tuple(self._actions)

    def add_action(self, action: str) -> None:
        if action not in self._actions and len(self._actions) < _MAX_ACTIONS:
            self._actions[action] = None

    async def flush(self) -> None:
        """Return when everything that this process has taken over is in the table."""

    async def events(
        self,
        user: UserId,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        action: str | None = None,
        allowed: bool | None = None,
        status: int | None = None,
        resource: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> EventPage:
        """Return a user's events at `since` <= time < `until`, newest first; by default all that are kept.

        The next page is the same query with the page's `cursor`. Raise `OutOfRetention`, `InvalidCursor`, and
        `InvalidInput` for a datetime without a time zone. One read a day of the range, until the page is full.
        """
        wanted, now = event_filter(allowed, status, resource), self._clock.now()
        query = EventQuery.of(user, now=now, since=since, until=until, action=action, wanted=wanted, cursor=cursor)
        return await page_of(self._store.events, query, limit)

    async def timeline(
        self,
        action: str,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        allowed: bool | None = None,
        status: int | None = None,
        resource: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> EventPage:
        """Return an action's events of all users, newest first: those that were written while it had a timeline.

        Without `since` it is of the seven days before `until`. The next page is the same query with the page's
        `cursor`. DynamoDB's index may lack what was written a moment ago. Raise what `events` does, and
        `StoreMisconfigured` where the table has no such index.
        """
        return await timeline_of(
            self._store.events, action, now=self._clock.now(), since=since, until=until,
            wanted=event_filter(allowed, status, resource), limit=limit, cursor=cursor,
        )  # fmt: skip

    async def totals(
        self,
        user: UserId,
        since: date | None = None,
        until: date | None = None,
        *,
        per: Per = "day",
        actions: Iterable[str] | None = None,
    ) -> dict[str, dict[date, int]]:
        """Return the units used per action and UTC day, `since` and `until` included, oldest first: exact.

        With `per="month"`, per calendar month, by its first day. By default of all that are kept: 35 days, 13 months.
        It takes one read an action. The actions are those of `self.actions`, unless given; where there is none, those
        of the user's events of these days, or of the last 35. Raise `OutOfRetention`.
        """
        first, last = self._range(since, until, per)
        records = await self._counted(user, actions, *(self._range() if per == "month" else (first, last)))
        return {action: totals_of(record, per, since=first, until=last) for action, record in records.items()}

    async def summary(self, user: UserId, days: int = 7, *, actions: Iterable[str] | None = None) -> dict[str, Any]:
        """Return, per action, `{"total": 35, "daily_avg": 5.0}` of the last `days` UTC days, today included.

        `"date_range"` holds the first and the last of them, as ISO text. Raise `OutOfRetention`.
        """
        if type(days) is not int or days < 1:
            raise InvalidInput(f"days must be a whole number of at least 1, not {days!r}")
        if days > DAYS_KEPT:
            raise OutOfRetention(f"{days} days are out of reach: totals are kept for {DAYS_KEPT} days")
        last = utc_day(self._clock.now())
        first = last - timedelta(days=days - 1)
        report: dict[str, Any] = {}
        for action, used in (await self.totals(user, first, last, actions=actions)).items():
            total = sum(used.values())
            report[action] = {"total": total, "daily_avg": round(total / days, 2)}
        return {**report, DATE_RANGE: [first.isoformat(), last.isoformat()]}

    async def reconcile(self, user: UserId, day: date) -> dict[str, Reconciliation]:
        """Compare a user's events of a UTC day with the totals, by action. What waits here is written first.

        Raise `StoreUnavailable` also where the table does not take it in time.
        """
        first, last = self._range(day, day)
        await self._flush_soon()
        logged: Counter[str] = Counter()
        async for event in walk(self._store.events, self._query(user, first, last, EventFilter(allowed=True))):
            logged[event.action] += event.cost
        actions = dict.fromkeys((*self.actions, *logged))
        totals = await self.totals(user, first, last, actions=actions)
        return {
            action: Reconciliation(logged[action], sum(totals[action].values()))
            for action in actions
            if logged[action] or totals[action]
        }

    async def top(self, day: date, action: str, *, count: int = 10, parts: int = 1) -> list[TopUser]:
        """Return who used an action most on a UTC day, the highest total first: exact.

        There is no index for it, so it reads the whole table, one read unit for 4 KB of it; `parts` are read side by
        side. Raise `OutOfRetention`.
        """
        check_action(action)
        self._range(day, day)
        check_count("count", count, MAX_TOP)
        check_count("parts", parts, MAX_PARTS)
        field = day_field(utc_date("day", day))

        async def ask(part: Part, cursor: str | None) -> Page[tuple[Key, Record]]:
            return await retry_store(lambda: self._store.scans.records(field=field, cursor=cursor, part=part))

        best: list[TopUser] = []
        async with aclosing(each_part_page(ask, first_cursors(parts), of=parts)) as pages:
            async for _, page in pages:
                found = [
                    TopUser(key.user, record[field])
                    for key, record in page.entries
                    if key.action == action and record[field] > 0
                ]
                # The greatest, and of those that are equal the first by name: `nlargest` keeps their order.
                best = nlargest(count, sorted([*best, *found]), key=lambda one: one.total)
        return best

    async def erase(self, user: UserId, *, actions: Iterable[str] = (), quick: bool = False) -> Erased:
        """Delete every trace of a user, whatever the action and however old. Return how many items of what there were.

        It READS THE WHOLE TABLE: there is no index for it. With `quick` it does not, and may leave counters of actions
        that neither `self.actions`, `actions`, a plan nor an event names, and events outside of the days that are kept.
        What waits here is written first, as for `reconcile`. Where it fails in the middle, repeat it: it goes on.
        """
        names = spellings(user)
        named = {*self.actions, *map(check_action, actions)}
        await self._flush_soon()
        if quick:
            return Erased.of(await erase_by_key(self._store, names, named, now=self._clock.now()))
        return Erased.of(await self._store.erase(names))

    async def _flush_soon(self) -> None:
        flushing = asyncio.ensure_future(self.flush())
        try:
            while True:
                before = self._progress()
                done, _ = await asyncio.wait({flushing}, timeout=_FLUSH_TIMEOUT_S)
                if done:
                    return flushing.result()
                if self._progress() == before:
                    raise StoreUnavailable(
                        f"the usage events that wait here could not be written in {_FLUSH_TIMEOUT_S:g} s"
                    )
        finally:
            flushing.cancel()

    def _progress(self) -> int:
        return 0

    async def _counted(self, user: UserId, actions: Iterable[str] | None, first: date, last: date) -> dict[str, Record]:
        """Read the records of these actions, or of all that this log knows; else of those in these days' events."""
        user = check_user(user)
        chosen = self.actions if actions is None else [check_action(action) for action in actions]
        named = chosen or await self._actions_of(user, first, last)
        return {action: await self._store.read(Key(user, action)) for action in named}

    def _range(self, since: date | None = None, until: date | None = None, per: Per = "day") -> tuple[date, date]:
        return kept_range(self._clock.now(), since, until, per)

    async def _actions_of(self, user: str, first: date, last: date) -> list[str]:
        query = self._query(user, first, last)
        return list(dict.fromkeys([event.action async for event in walk(self._store.events, query)]))

    def _query(self, user: UserId, first: date, last: date, wanted: EventFilter = ANY) -> EventQuery:
        since = datetime.combine(first, time(), UTC)
        until = datetime.combine(last + timedelta(days=1), time(), UTC)
        return EventQuery.of(user, now=self._clock.now(), since=since, until=until, wanted=wanted)


# Items that have expired may stay in the table for some days.
_DAYS_LOOKED_AT: Final = RETENTION_DAYS + 7
_MAX_ATTEMPTS: Final = 10


class Erased(int):
    """The number of items that there were of a user; what they were is in `found`."""

    found: Mapping[str, int]
    """Only what there was: `events`, `event_ids`, `counters`, `entries`, `identities`; and `journal`, events that were
    in a journal and not in the table yet."""
    left: Sequence[str]
    """Files that hold the user's name and cannot be taken apart: damaged ones of a journal, to be looked at and deleted
    by a person."""

    @classmethod
    def of(cls, found: Mapping[Any, int], left: Sequence[str] = ()) -> Self:
        """Return the sum; `found` leaves out what there was none of."""
        erased = cls(sum(found.values()))
        erased.found = {what: count for what, count in found.items() if count}
        erased.left = tuple(left)
        return erased


def spellings(user: UserId) -> list[str]:
    """Return the names under which the same user may have been counted, the given one first.

    The same text in another of Unicode's forms; and UTF-8 that somebody on the way took for Latin-1, or the other way
    round, as it happens to what stands in a header. Raise `InvalidUser`.
    """
    name = check_user(user)
    texts = {name: None}
    with suppress(UnicodeError):
        texts.setdefault(name.encode("latin-1").decode())
    names = dict(texts)
    for text in texts:
        names |= dict.fromkeys((unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)))
    names |= dict.fromkeys([text.encode().decode("latin-1") for text in names])
    return [name for name in names if _is_user(name)]


async def erase_by_key(store: TableStore, users: Iterable[str], actions: Iterable[str], *, now: int) -> Counter[str]:
    """Erase what is found without reading the whole table, and return how many of what.

    That is the events of the days that are kept, the ids that are remembered, the entry, and the counters of the
    actions that are given, that a plan names or that the events name. `now` is in microseconds.
    """
    named = {*actions, *await _planned(store.directory)}
    found: Counter[str] = Counter()
    today = utc_day(now)
    days = [today - timedelta(days=age) for age in range(-1, _DAYS_LOOKED_AT + 1)]
    for user in users:
        theirs = set(named)
        for day in days:
            theirs |= await store.events.actions(user, day)
        for action in sorted(theirs):
            key = Key(user, action)
            found["counters"] += bool(await store.read(key))
            await store.delete(key)
        # Only now: of some counters nothing but the events knows the action, also when this is repeated.
        for day in days:
            found["events"] += await store.events.erase(user, day)
        found["event_ids"] += await store.events.forget(user)
        entry = await _remove_entry(store.directory, user, now=now)
        found["entries"] += entry is not None
        found["identities"] += 0 if entry is None else len(entry.identities)
    return found


async def _planned(directory: DirectoryStore) -> set[str]:
    plans = each_page(lambda cursor: directory.page(Plan, cursor=cursor))
    return {action async for some in plans for plan in some for action in plan.quotas}


async def _remove_entry(directory: DirectoryStore, user: str, *, now: int) -> User | None:
    for _ in range(_MAX_ATTEMPTS):
        entry = await directory.read(User, user)
        if entry is None or await directory.replace(entry, None, now=now):
            return entry
    raise StoreThrottled(f"the entry of user {user!r} was changed by others {_MAX_ATTEMPTS} times over; try again")


def _is_user(name: str) -> bool:
    try:
        return bool(check_user(name))
    except InvalidUser:
        return False
