"""Reading, as a run, a dry run and a verification do it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator
from itertools import islice
from typing import Final, Protocol, TypeVar

from ratelimit.event import UsageEvent
from ratelimit.migrate.checkpoint import Counts
from ratelimit.migrate.rows import Batch, Entity, Entry, Expired
from ratelimit.migrate.tally import Rules
from ratelimit.store.directory import DirectoryStore, Plan, User

T = TypeVar("T")

_SOME: Final = 200


class ProgressListener(Protocol):
    """Hears how it goes."""

    def __call__(self, entity: Entity, counts: Counts, done: int, size: int | None) -> None:
        """After each batch: `done` of `size` (None where nobody knows it) is behind the counts."""
        ...


def chunks(items: Iterable[T]) -> Iterator[list[T]]:
    """A few at a time."""
    iterator = iter(items)
    while some := list(islice(iterator, _SOME)):
        yield some


def waiting(rejected: int, where: str = "") -> str:
    """Why no counters are written: a mark says that all uses before it are in the record."""
    return (
        f"no counters are written while rows of use are rejected, {rejected:,} by now{where}: mend the mapping and run "
        "it again, or add --leave-rejected to count without them for good"
    )


def uses_of(entries: Iterable[Entry | None]) -> list[UsageEvent | Expired]:
    """Those that count: what was refused spent nothing."""
    found = [entry for entry in entries if isinstance(entry, UsageEvent | Expired)]
    return [use for use in found if isinstance(use, Expired) or use.allowed]


async def learn_rules(directory: DirectoryStore, rules: Rules) -> None:
    """The quotas of all plans and users that are in the table, whoever put them there."""
    kinds: tuple[type[Plan | User], ...] = (Plan, User)
    for kind in kinds:
        cursor: str | None = None
        while True:
            page = await directory.page(kind, limit=_SOME, cursor=cursor)
            for entry in page.entries:
                rules.learn(entry.quotas)
            if (cursor := page.cursor) is None:
                break


async def ahead(batches: AsyncGenerator[Batch, None]) -> AsyncGenerator[Batch, None]:
    """The same, the next one being read while one is used."""
    reading = asyncio.ensure_future(anext(batches, None))
    try:
        while (batch := await reading) is not None:
            reading = asyncio.ensure_future(anext(batches, None))
            yield batch
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await batches.aclose()
