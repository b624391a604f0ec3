"""Users and plans in this process's memory: for tests, and for an app that fills it when it starts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any, TypeVar, cast

from ratelimit.store.directory.base import (
    Entry,
    IdentityTaken,
    Page,
    check_limit,
    check_pair,
    name_of,
    next_version,
)
from ratelimit.store.directory.cursor import decode_cursor, encode_cursor
from ratelimit.store.directory.entries import User
from ratelimit.store.directory.identity import Identity

T = TypeVar("T", bound=Entry)


class MemoryDirectoryStore:
    """A `DirectoryStore` on dicts. Holds what it is given, without a bound: entries are made by administrators."""

    def __init__(self) -> None:
        self._entries: dict[type[Any], dict[str, Entry]] = {}
        self._owners: dict[Identity, str] = {}

    async def read(self, kind: type[T], name: str) -> T | None:
        """See `DirectoryStore.read`."""
        return cast("T | None", self._entries.get(kind, {}).get(name))

    async def find(self, identity: Identity) -> str | None:
        """See `DirectoryStore.find`."""
        return self._owners.get(identity)

    async def page(
        self, kind: type[T], *, plan: str | None = None, limit: int = 100, cursor: str | None = None
    ) -> Page[T]:
        """See `DirectoryStore.page`. In the order of names."""
        listing = f"{kind.__name__}:{plan or ''}"
        after = None if cursor is None else decode_cursor(cursor, listing, parts=1)[0]
        found = [
            name
            for name, entry in sorted(self._entries.get(kind, {}).items())
            if (after is None or name > after) and (plan is None or (isinstance(entry, User) and entry.plan == plan))
        ]
        names = found[: check_limit(limit)]
        entries = tuple(cast(T, self._entries[kind][name]) for name in names)
        return Page(entries, encode_cursor(listing, names[-1]) if len(found) > len(names) else None)

    async def replace(self, old: Entry | None, new: Entry | None, *, now: int) -> bool:
        """See `DirectoryStore.replace`."""
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
        """Delete the entries of these users, and all that finds them; how many of each there were."""
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
