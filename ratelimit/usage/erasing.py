"""Erasing a user: what there was of them, under which names they may stand, and what is found by key alone."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from hashlib import blake2b
from pathlib import Path
from secrets import token_hex
from typing import Any, BinaryIO, Final, Self

import msgspec

from ratelimit.algorithms.fields import utc_day
from ratelimit.clock import DAY
from ratelimit.errors import InvalidUser, StoreThrottled
from ratelimit.event import RETENTION_DAYS, UsageEvent
from ratelimit.names import Key, UserId, check_user
from ratelimit.store.base import TableStore
from ratelimit.store.directory import DirectoryStore, Plan, User
from ratelimit.usage.segments import DAMAGED

# Items that have expired may stay in the table for some days.
_DAYS: Final = RETENTION_DAYS + 7
_ATTEMPTS: Final = 10


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
        """Raises nothing; what was not found is left out."""
        erased = cls(sum(found.values()))
        erased.found = {what: count for what, count in found.items() if count}
        erased.left = tuple(left)
        return erased


def spellings(user: UserId) -> list[str]:
    """The names under which the same user may have been counted, the given one first.

    The same text in another of Unicode's forms; and UTF-8 that somebody on the way took for Latin-1, or the other way
    round, as it happens to what stands in a header. Raises `InvalidUser`.
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
    """What is found without reading the whole table; how many of what.

    Events of the days that are kept, the ids that are remembered, the entry, and the counters of the actions that are
    given, that a plan names or that the events name. `now` is in microseconds.
    """
    named = {*actions, *await _planned(store.directory)}
    found: Counter[str] = Counter()
    today = utc_day(now)
    days = [today - timedelta(days=age) for age in range(-1, _DAYS + 1)]
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
    for _ in range(_ATTEMPTS):
        entry = await directory.read(User, user)
        if entry is None or await directory.replace(entry, None, now=now):
            return entry
    raise StoreThrottled(f"the entry of user {user!r} was changed by others {_ATTEMPTS} times over; try again")


def _is_user(name: str) -> bool:
    try:
        return bool(check_user(name))
    except InvalidUser:
        return False


# `Erasures`: who was erased, for those who read a journal. What waited in it then is not to come back. DIR/erased a
# line each, in JSON: a salt, the user's digest under it, and when it was A segment is kept until all that is in it is
# in the table, so that a crash repeats some of what was written: that must not bring back what was erased meanwhile,
# by whomever.

ERASED: Final = "erased"
_KEPT_MS: Final = (RETENTION_DAYS + 1) * DAY // 1000


class _Line(msgspec.Struct, frozen=True):
    salt: str
    digest: str
    at: int
    """Milliseconds."""


class Erasures:
    """Of one journal's directory. `add` and `load` touch the disk; `covers` does not."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / ERASED
        self._seen: tuple[int, int] | None = None
        self._lines: list[_Line] = []
        self._erased: dict[str, int] = {}

    def add(self, users: Iterable[str], *, at: int) -> None:
        """Events of these users that happened until then are not to be written any more. Raises `OSError`."""
        lines = [_Line(salt := token_hex(8), _digest(salt, user), at) for user in users]
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b") as file:
            _lock(file)
            # What is older than any event that is still written need not be known.
            kept = [line for line in _read(file) if line.at > at - _KEPT_MS]
            file.seek(0)
            file.truncate()
            file.write(msgspec.json.Encoder().encode_lines([*kept, *lines]))
            file.flush()
            os.fsync(file.fileno())

    def load(self) -> None:
        """Look whether somebody has added to it. Raises `OSError`."""
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            return
        if (seen := (stat.st_mtime_ns, stat.st_size)) == self._seen:
            return
        with self._path.open("rb") as file:
            _lock(file, shared=True)
            self._lines = list(_read(file))
        self._seen = seen
        self._erased.clear()

    def covers(self, event: UsageEvent) -> bool:
        """Whether it is of somebody who was erased after it."""
        if not self._lines:
            return False
        until = self._erased.get(event.user)
        if until is None:
            mine = [line.at for line in self._lines if line.digest == _digest(line.salt, event.user)]
            until = self._erased[event.user] = max(mine, default=-1)
        return event.at_ms <= until


def damaged_files_of(directory: Path, users: Iterable[str]) -> list[str]:
    """The damaged segments, which nobody reads again, in which one of these users stands."""
    needles = [msgspec.json.encode(user) for user in users]
    return [
        str(path)
        for path in sorted(directory.glob(f"*{DAMAGED}"))
        if any(needle in path.read_bytes() for needle in needles)
    ]


def _read(file: BinaryIO) -> Iterator[_Line]:
    for line in file:
        try:
            yield msgspec.json.decode(line, type=_Line)
        except msgspec.DecodeError:  # cut short by a crash: whoever wrote it was not told that it is done
            continue


def _digest(salt: str, user: str) -> str:
    return blake2b(user.encode(), salt=bytes.fromhex(salt), digest_size=16).hexdigest()


def _lock(file: BinaryIO, *, shared: bool = False) -> None:
    import fcntl  # as in `segments`: only where there is a journal

    fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
