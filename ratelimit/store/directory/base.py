"""The contract of a store of users and plans, on one page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeAlias, TypeVar

from ratelimit.errors import InvalidInput, StoreMisconfigured
from ratelimit.store.directory.entries import Plan, User
from ratelimit.store.directory.identity import Identity

Entry: TypeAlias = User | Plan
T = TypeVar("T", bound=Entry)

MAX_PAGE: Final = 1_000


class IdentityTaken(InvalidInput):
    """An identity that belongs to another user; nothing was written."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        super().__init__(f"another user has this {identity.kind.replace('_', ' ')} already ({identity.value})")


class UnreadableEntry(StoreMisconfigured):
    """One user or plan whose row makes no sense; the others are not concerned."""


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some of a list, and where the rest begins; `cursor` is None when there is no rest. The rest may prove empty."""

    entries: tuple[T, ...]
    cursor: str | None


class DirectoryStore(Protocol):
    """Where users and plans live. Every method may raise `StoreUnavailable` when the store gives no usable answer."""

    async def read(self, kind: type[T], name: str) -> T | None:
        """The user or plan of this name: `read(User, "alice")`. Sees all that was written before."""
        ...

    async def find(self, identity: Identity) -> str | None:
        """The id of the user who has this identity. Sees all that was written before."""
        ...

    async def page(
        self, kind: type[T], *, plan: str | None = None, limit: int = 100, cursor: str | None = None
    ) -> Page[T]:
        """All plans, all users, or a plan's users, at most `limit` at a time. May lag behind writes by some seconds.

        Raises `InvalidCursor` for one that is damaged or came from another list.
        """
        ...

    async def replace(self, old: Entry | None, new: Entry | None, *, now: int) -> bool:
        """Put `new` in the place of `old`, as it was read, with all identities, or do nothing at all.

        `old` is None for one that is not to be there yet, `new` is None to remove it. False where somebody else has
        changed it since. Raises `IdentityTaken`. `now` in microseconds.
        """
        ...


def check_pair(old: Entry | None, new: Entry | None) -> Entry:
    """The one to speak of, once it is clear that both are about the same. Raises `ValueError`, as that is a bug."""
    entry = new if new is not None else old
    if entry is None:
        raise ValueError("nothing to replace by nothing")
    if old is not None and (type(old), name_of(old)) != (type(entry), name_of(entry)):
        raise ValueError("an entry cannot be replaced by one of another name")
    return entry


def next_version(old: Entry | None, now: int) -> int:
    """Never one that was there before, also where an entry is removed and comes back."""
    return now if old is None else max(now, old.version + 1)


def name_of(entry: Entry) -> str:
    """A user's id, a plan's name."""
    return entry.id if isinstance(entry, User) else entry.name


def check_limit(limit: int) -> int:
    """Raises `InvalidInput`."""
    if type(limit) is not int or not 1 <= limit <= MAX_PAGE:
        raise InvalidInput(f"limit must be a whole number from 1 to {MAX_PAGE}, not {limit!r}")
    return limit
