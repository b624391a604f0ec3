"""The last trace of a user: the entry in the directory, and what the user is found by."""

from __future__ import annotations

from typing import Final

from ratelimit.errors import StoreThrottled
from ratelimit.store.directory import DirectoryStore, User

_ATTEMPTS: Final = 10


async def remove_entry(directory: DirectoryStore, user: str, *, now: int) -> int:
    """The number of items that there were: the entry, and one for each identity. Raises `StoreUnavailable`."""
    for _ in range(_ATTEMPTS):
        entry = await directory.read(User, user)
        if entry is None:
            return 0
        if await directory.replace(entry, None, now=now):
            return 1 + len(entry.identities)
    raise StoreThrottled(f"the entry of user {user!r} was changed by others {_ATTEMPTS} times over; try again")
