"""What a source gives: entries, converted already, or the reason why not; in batches that can be gone on from."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias, TypeVar, cast, get_args

import msgspec

from ratelimit.cursor import Page, each_page
from ratelimit.errors import InvalidInput, StoreUnavailable
from ratelimit.event import UsageEvent
from ratelimit.names import Key
from ratelimit.retry import retry_store
from ratelimit.store.base import Record
from ratelimit.store.directory import Plan, User
from ratelimit.store.hashed import UserHash

E = TypeVar("E", bound=str)
P = TypeVar("P", covariant=True)

Entity: TypeAlias = Literal["plans", "users", "events", "counters"]
ENTITIES: Final[tuple[Entity, ...]] = get_args(Entity)
"""In the order in which they are brought over: a plan is there before its users, the counters are the last."""


def rows_of(entity: E) -> E:
    """Return the entity whose rows these are: counters are counted from the rows of events."""
    return cast(E, "events") if entity == "counters" else entity


def is_asked(entity: Entity, wanted: Collection[str]) -> bool:
    """Return whether the rows of an entity are needed for what is wanted; nothing wanted is all."""
    return not wanted or entity in map(rows_of, wanted)


class SourceUnavailable(StoreUnavailable):
    """The source cannot be reached, or went away: the same command goes on where it stopped."""


class SourceRefused(InvalidInput):
    """The source answered no: a permission, a table or a column is missing."""


class Expired(NamedTuple):
    """A use too long ago to be kept as an event, but not to be counted."""

    id: str
    user: str
    action: str
    at_ms: int
    cost: int


class Counted(NamedTuple):
    """The counters of one user and action, as another table of this project holds them."""

    key: Key
    record: Record
    fresh: Callable[[], Awaitable[Record]]
    """Reads it once more, as it is by then."""


Entry: TypeAlias = Plan | User | UsageEvent | Expired | Counted


class SourceRow(NamedTuple):
    """One row: what it is, or what is wrong with it."""

    where: str
    """For people: `usage_log id 17`, `line 3`."""
    entry: Entry | None
    problem: str = ""
    text: str = ""
    """The row as it was found, where there is a problem."""


class Batch(NamedTuple):
    """Some rows of a source, and where the rest begins."""

    rows: Sequence[SourceRow]
    place: str | None
    """To go on after them; None where that cannot be: the entity is begun anew, with its counts."""
    done: int
    """How much of `Source.size` is behind them."""


class Source(ABC):
    """Where users come from. Read only: nothing in here ever writes to it.

    Every method may raise `SourceUnavailable`, `SourceRefused`, and `OSError` for a file.
    """

    name: str
    """For people, without secrets."""
    totals = False
    """Whether its counters are sums that it has itself (`Counted`); else they are counted from its rows."""
    users: UserHash | None = None
    """What each user is exchanged for; None where they stay as they are. Rejected rows always do."""

    @abstractmethod
    async def open(self) -> None:
        """Reach it, and find out what it has."""

    @abstractmethod
    async def entities(self) -> Sequence[Entity]:
        """Return what there is of the four."""

    @abstractmethod
    async def size(self, entity: Entity) -> int | None:
        """Return what `Batch.done` will come to; None where nobody knows."""

    async def batches(self, entity: Entity, *, after: str | None, size: int) -> AsyncGenerator[Batch, None]:
        """Yield its rows from the beginning, or from the `place` of a batch; the next are read while some are used."""
        batches = self._batches(entity, after, size)
        reading = asyncio.ensure_future(anext(batches, None))
        try:
            while (batch := await reading) is not None:
                reading = asyncio.ensure_future(anext(batches, None))
                yield batch if self.users is None else _hashed(batch, self.users)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            await batches.aclose()

    @abstractmethod
    def _batches(self, entity: Entity, after: str | None, size: int) -> AsyncGenerator[Batch, None]:
        """Yield them, users as they are there."""

    @property
    def keyed(self) -> bool:
        """Return whether each row is there once by its key: none is counted twice. Known once it is open."""
        return False

    @property
    def files(self) -> Sequence[Path]:
        """Return what a backup has to hold; nothing for a server."""
        return ()

    def stamp(self) -> str:
        """Return the size and time of a file. Where it has changed, a `place` is good no more; keys stay good."""
        return ""

    @abstractmethod
    async def notes(self) -> Sequence[str]:
        """Return what a reader of the report should know: what was left alone, what is suspicious."""

    async def close(self) -> None:  # noqa: B027 (a file has nothing to close)
        """Let go of it."""


def _hashed(batch: Batch, users: UserHash) -> Batch:
    def exchanged(entry: Entry | None) -> Entry | None:
        if isinstance(entry, UsageEvent):
            return msgspec.structs.replace(entry, user=users.of(entry.user))
        if isinstance(entry, Expired):
            return entry._replace(user=users.of(entry.user))
        if isinstance(entry, User):
            return replace(entry, id=users.of(entry.id))
        if isinstance(entry, Counted):
            return entry._replace(key=Key(users.of(entry.key.user), entry.key.action))
        return entry

    return batch._replace(rows=[row._replace(entry=exchanged(row.entry)) for row in batch.rows])


def retried_pages(ask: Callable[..., Awaitable[Page[P]]]) -> AsyncGenerator[tuple[P, ...], None]:
    """Yield page after page; `ask` is given the `cursor` where each begins. Raises as `retry_store`."""
    return each_page(lambda cursor: retry_store(partial(ask, cursor=cursor)))


def readable(text: str) -> str:
    """Return the text of a row as it can be written down: half an emoji is valid JSON, and no Unicode."""
    return text.encode(errors="backslashreplace").decode()
