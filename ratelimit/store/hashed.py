"""`HashedUserStore`: a store in which no user stands, only the keyed hash of each, which tells nobody a name.

The hash is HMAC-SHA-256 under a secret that is never in the store, cut to 128 bits: without the secret nobody can test
a guess, with it everything works as before. There is no way back from a hash, so that whatever lists users (a plan's, a
day's top, an export of everybody) lists hashes; and with another secret everybody is somebody new.
"""

from __future__ import annotations

import hmac
from base64 import b32encode
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import date
from functools import lru_cache
from typing import Final, TypeVar

import msgspec

from ratelimit.event import UsageEvent
from ratelimit.names import HASH_PREFIX, Key, is_hash
from ratelimit.store.base import EventStore, Outcome, Position, Record, TableStore, Trace, Write
from ratelimit.store.delegating import DelegatingDirectoryStore, DelegatingEventStore, DelegatingStore
from ratelimit.store.directory import DirectoryStore, Entry, User

T = TypeVar("T", bound=Entry)

_BYTES: Final = 16
MAX_CACHED_HASHES: Final = 10_000
# Keeps these hashes apart from any other that the same secret may be used for.
_PURPOSE: Final = b"ratelimit user\0"


@dataclass(frozen=True, slots=True)
class UserHash:
    """What stands for a user, under one secret."""

    secret: str

    def of(self, user: str) -> str:
        """Return `h:` and 26 letters and digits; a hash itself as it is, so that what was listed can be asked for."""
        return user if is_hash(user) else _hash(self.secret, user)


@lru_cache(maxsize=MAX_CACHED_HASHES)
def _hash(secret: str, user: str) -> str:
    digest = hmac.digest(_PURPOSE + secret.encode(), user.encode(), "sha256")[:_BYTES]
    return HASH_PREFIX + b32encode(digest).decode().rstrip("=").lower()


class HashedUserStore(DelegatingStore):
    """A store on another one, `HashedUserStore(store, secret)`, which it opens and closes."""

    def __init__(self, store: TableStore, secret: str) -> None:
        super().__init__(store)
        self.user_hash = UserHash(secret)
        self.events = _HashedEvents(store.events, self.user_hash)
        self.directory = _HashedDirectory(store.directory, self.user_hash)

    async def apply(self, key: Key, write: Write, *, now: int) -> Outcome:
        return await self.inner.apply(self._key(key), write, now=now)

    async def apply_all(self, writes: Sequence[tuple[Key, Write]], *, now: int) -> Sequence[Outcome]:
        return await self.inner.apply_all([(self._key(key), write) for key, write in writes], now=now)

    async def read(self, key: Key) -> Record:
        return await self.inner.read(self._key(key))

    async def read_all(self, keys: Sequence[Key]) -> Sequence[Record]:
        return await self.inner.read_all([self._key(key) for key in keys])

    async def delete(self, key: Key) -> None:
        await self.inner.delete(self._key(key))

    async def erase(self, users: Collection[str]) -> Mapping[Trace, int]:
        """Also what is from before hashing was turned on, under the names themselves."""
        return await self.inner.erase({*users, *map(self.user_hash.of, users)})

    def _key(self, key: Key) -> Key:
        return Key(self.user_hash.of(key.user), key.action)


class _HashedEvents(DelegatingEventStore):
    """What is read back names the user as the question did; a timeline, which asks for nobody, names hashes."""

    def __init__(self, inner: EventStore, hash: UserHash) -> None:
        super().__init__(inner)
        self._hash = hash

    async def put(self, events: Sequence[UsageEvent], *, timelines: Collection[str] = ()) -> Sequence[UsageEvent]:
        hidden = [_as(event, self._hash.of(event.user)) for event in events]
        given = {id(one): event for one, event in zip(hidden, events, strict=True)}
        return [given[id(one)] for one in await self.inner.put(hidden, timelines=timelines)]

    async def find(self, events: Sequence[UsageEvent]) -> Sequence[UsageEvent | None]:
        found = await self.inner.find([_as(event, self._hash.of(event.user)) for event in events])
        return [None if one is None else _as(one, event.user) for event, one in zip(events, found, strict=True)]

    async def page(
        self, user: str, day: date, *, since: int, until: int, limit: int, after: Position | None = None
    ) -> Sequence[UsageEvent]:
        found = await self.inner.page(self._hash.of(user), day, since=since, until=until, limit=limit, after=after)
        return [_as(event, user) for event in found]

    async def actions(self, user: str, day: date) -> Set[str]:
        return await self.inner.actions(self._hash.of(user), day)

    async def erase(self, user: str, day: date) -> int:
        return await self.inner.erase(self._hash.of(user), day)

    async def forget(self, user: str) -> int:
        return await self.inner.forget(self._hash.of(user))


class _HashedDirectory(DelegatingDirectoryStore):
    """An entry that was asked for by name has that name; one from a list goes by its hash."""

    def __init__(self, inner: DirectoryStore, hash: UserHash) -> None:
        super().__init__(inner)
        self._hash = hash

    async def read(self, kind: type[T], name: str) -> T | None:
        found = await self.inner.read(kind, self._hash.of(name) if kind is User else name)
        return found if found is None else _renamed(found, name)

    async def replace(self, old: Entry | None, new: Entry | None, *, now: int) -> bool:
        return await self.inner.replace(self._hidden(old), self._hidden(new), now=now)

    def _hidden(self, entry: Entry | None) -> Entry | None:
        return _renamed(entry, self._hash.of(entry.id)) if isinstance(entry, User) else entry


def _as(event: UsageEvent, user: str) -> UsageEvent:
    return msgspec.structs.replace(event, user=user)


def _renamed(entry: T, name: str) -> T:
    return replace(entry, id=name) if isinstance(entry, User) else entry
