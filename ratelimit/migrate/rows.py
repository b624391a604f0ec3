"""What a source gives: entries, converted already, or the reason why not; in batches that can be gone on from."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple, Protocol, TypeAlias, get_args

from ratelimit.errors import InvalidInput, StoreUnavailable
from ratelimit.event import UsageEvent
from ratelimit.names import Key
from ratelimit.store.base import Record
from ratelimit.store.directory import Plan, User

Entity: TypeAlias = Literal["plans", "users", "events", "counters"]
ENTITIES: Final[tuple[Entity, ...]] = get_args(Entity)
"""In the order in which they are brought over: a plan is there before its users, the counters are the last."""


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
    """Milliseconds."""
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


class Source(Protocol):
    """Where users come from. Read only: nothing in here ever writes to it.

    Every method may raise `SourceUnavailable`, `SourceRefused`, and `OSError` for a file.
    """

    name: str
    """For people, without secrets."""
    totals: bool
    """Whether its counters are sums that it has itself (`Counted`); else they are counted from its rows."""

    async def open(self) -> None:
        """Reach it, and find out what it has."""
        ...

    async def entities(self) -> Sequence[Entity]:
        """Return what there is of the four."""
        ...

    async def size(self, entity: Entity) -> int | None:
        """Return what `Batch.done` will come to; None where nobody knows."""
        ...

    def batches(self, entity: Entity, *, after: str | None, size: int) -> AsyncGenerator[Batch, None]:
        """Yield its rows from the beginning, or from the `place` of a batch."""
        ...

    @property
    def keyed(self) -> bool:
        """Return whether each row is there once by its key: none is counted twice. Known once it is open."""
        ...

    @property
    def files(self) -> Sequence[Path]:
        """Return what a backup has to hold; nothing for a server."""
        return ()

    def stamp(self) -> str:
        """Return the size and time of a file. Where it has changed, a `place` is good no more; keys stay good."""
        return ""

    async def notes(self) -> Sequence[str]:
        """Return what a reader of the report should know: what was left alone, what is suspicious."""
        ...

    async def close(self) -> None:
        """Let go of it."""
        ...


def readable(text: str) -> str:
    """Return the text of a row as it can be written down: half an emoji is valid JSON, and no Unicode."""
    return text.encode(errors="backslashreplace").decode()
