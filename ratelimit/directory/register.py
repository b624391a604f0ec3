"""Changing users and plans: read, change, replace if nobody was faster, else once more. So no change is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Final, TypeVar

from ratelimit.clock import Clock
from ratelimit.errors import RateLimitError
from ratelimit.store.directory import DirectoryStore, Entry, Plan, User

T = TypeVar("T", bound=Entry)

_ATTEMPTS: Final = 10


class UnknownUser(RateLimitError, LookupError):
    """No such user is in the directory."""


class UnknownPlan(RateLimitError, LookupError):
    """No such plan is in the directory."""


class Contended(RateLimitError):
    """Others kept changing the same user or plan; nothing was written."""


class Register:
    """Writes to a `DirectoryStore`. Every method raises `StoreUnavailable`; after it, the change may have been made."""

    __slots__ = ("_clock", "_store")

    def __init__(self, store: DirectoryStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def change(self, kind: type[T], name: str, change: Callable[[T | None], T | None]) -> T | None:
        """What is there under this name becomes `change` of it, which may be asked again; None is for nothing.

        Raises `Contended`, `IdentityTaken`, and what `change` raises.
        """
        for _ in range(_ATTEMPTS):
            old = await self._store.read(kind, name)
            new = change(old)
            if old == new or await self._store.replace(old, new, now=self._clock.now()):
                return new
        raise Contended(f"{kind.__name__.lower()} {name!r} was changed by others {_ATTEMPTS} times over; try again")

    async def users(self, *, plan: str | None = None) -> AsyncIterator[User]:
        """All users, or those of a plan, as they are read page by page."""
        cursor = None
        while True:
            page = await self._store.page(User, plan=plan, cursor=cursor)
            for user in page.entries:
                yield user
            if (cursor := page.cursor) is None:
                return

    async def plans(self) -> AsyncIterator[Plan]:
        """All plans."""
        cursor = None
        while True:
            page = await self._store.page(Plan, cursor=cursor)
            for plan in page.entries:
                yield plan
            if (cursor := page.cursor) is None:
                return
