"""Erasing a user: the names under which they may stand, what is found by key alone, and what there was."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final, Self

from ratelimit.algorithms.fields import utc_day
from ratelimit.errors import InvalidUser, StoreThrottled
from ratelimit.event import RETENTION_DAYS
from ratelimit.names import Key, UserId, check_user
from ratelimit.store.base import TableStore
from ratelimit.store.directory import DirectoryStore, Plan, User

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
    actions: set[str] = set()
    cursor: str | None = None
    while True:
        page = await directory.page(Plan, cursor=cursor)
        for plan in page.entries:
            actions |= plan.quotas.keys()
        if (cursor := page.cursor) is None:
            return actions


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
