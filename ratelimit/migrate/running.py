"""`Run`: everything from a source to a table, batch by batch, with a checkpoint after each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import islice
from typing import Final, Literal, Protocol, TypeAlias, TypeVar

from ratelimit.clock import Clock, SystemClock
from ratelimit.errors import InvalidInput, StoreUnavailable
from ratelimit.event import UsageEvent
from ratelimit.migrate.backup import back_up
from ratelimit.migrate.checkpoint import Checkpoint, Counts, Desk
from ratelimit.migrate.counters import Counters
from ratelimit.migrate.hashed import HashedSource
from ratelimit.migrate.rows import Batch, Counted, Entity, Entry, Expired, Read, Source
from ratelimit.migrate.scratch import Scratch
from ratelimit.migrate.table import TableSource
from ratelimit.migrate.tally import SCHEMA, Rules, Tally
from ratelimit.migrate.target import Taken, Target
from ratelimit.names import Key
from ratelimit.store.directory import DirectoryStore, Plan, User

T = TypeVar("T")
OnError: TypeAlias = Literal["skip", "stop"]

DEFAULT_BATCH: Final = 1000
_SOME: Final = 200


class Listener(Protocol):
    """Hears how it goes."""

    def __call__(self, entity: Entity, counts: Counts, done: int, size: int | None) -> None:
        """After each batch: `done` of `size` (None where nobody knows it) is behind the counts."""
        ...


class BadRow(InvalidInput):
    """A row that cannot be used, and `on_error` is `stop`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What is asked for."""

    entities: tuple[Entity, ...]
    batch_size: int = DEFAULT_BATCH
    on_error: OnError = "skip"
    backup: bool = True
    mirrored: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= 10_000:
            raise InvalidInput(f"--batch-size must be from 1 to 10000, not {self.batch_size!r}")


class Run:
    """One migration, or what is left of it. `checkpoint` is where it stands."""

    def __init__(
        self,
        source: Source,
        target: Target,
        choices: Choices,
        *,
        desk: Desk,
        checkpoint: Checkpoint,
        rules: Rules,
        clock: Clock | None = None,
        listener: Listener,
    ) -> None:
        self.checkpoint = checkpoint
        self._source = source
        self._target = target
        self._choices = choices
        self._desk = desk
        self._rules = rules
        self._clock = clock or SystemClock()
        self._tell = listener
        self._units_before = checkpoint.units

    async def all(self) -> Checkpoint:
        """Bring everything over. Raises `StoreUnavailable` (`SourceUnavailable` too), `InvalidInput`, `OSError`:
        after any of them, and after a crash, the same again goes on."""
        checkpoint = self.checkpoint
        stamp = self._source.stamp()
        if checkpoint.stamp != stamp:  # changed meanwhile, or a first run: what is there already is found out
            checkpoint.entity = checkpoint.place = None
            checkpoint.done, checkpoint.counts, checkpoint.rejects_bytes = [], {}, 0
            checkpoint.stamp = stamp
        self._desk.begin(checkpoint)
        try:
            if self._choices.backup:
                await asyncio.to_thread(back_up, self._source.files, began=checkpoint.began)
            for entity in self._choices.entities:
                if entity not in checkpoint.done:
                    await self._one(entity)
        finally:
            self._desk.close()
        self._desk.finish()
        return checkpoint

    async def _one(self, entity: Entity) -> None:
        checkpoint = self.checkpoint
        if checkpoint.entity != entity:
            checkpoint.entity, checkpoint.place, checkpoint.behind = entity, None, 0
            checkpoint.counts.pop(entity, None)
        if entity == "counters" and not self._source.totals:
            await self._count_up()
        else:
            await self._bring(entity)
        checkpoint.done.append(entity)
        checkpoint.entity = checkpoint.place = None
        self._save()

    async def _bring(self, entity: Entity) -> None:
        checkpoint, counts = self.checkpoint, self.checkpoint.of(entity)
        size = await self._source.size(entity)
        self._tell(entity, counts, checkpoint.behind, size)
        batches = self._source.batches(entity, after=checkpoint.place, size=self._choices.batch_size)
        async with aclosing(ahead(batches)) as found:
            async for batch in found:
                await self._take(entity, batch.rows, counts)
                checkpoint.place, checkpoint.behind = batch.place, batch.done
                self._save()
                self._tell(entity, counts, batch.done, size)

    async def _take(self, entity: Entity, rows: Sequence[Read], counts: Counts) -> None:
        counts.read += len(rows)
        good = [row for row in rows if row.entry is not None]
        for row in rows:
            if row.entry is None:
                self._reject(entity, row, counts)
        if entity == "events":
            await self._take_events(good, counts)
        elif entity == "counters":
            await self._take_counters(good, counts)
        else:
            await self._take_entries(entity, good, counts)

    async def _take_events(self, rows: Sequence[Read], counts: Counts) -> None:
        events = [row.entry for row in rows if isinstance(row.entry, UsageEvent)]
        counts.expired += sum(isinstance(row.entry, Expired) for row in rows)
        written = await self._target.put_events(events)
        counts.written += written
        counts.there += len(events) - written

    async def _take_entries(self, entity: Entity, rows: Sequence[Read], counts: Counts) -> None:
        entries = [row.entry for row in rows if isinstance(row.entry, User | Plan)]
        for entry in entries:
            self._rules.learn(entry.quotas)
        fates = await self._target.put_entries(entries, now=self._clock.now())
        for row, fate in zip(rows, fates, strict=True):
            if isinstance(fate, Taken):
                self._reject(entity, row._replace(problem=fate.reason, text=repr(row.entry)), counts)
            else:
                counts.note([fate])

    async def _take_counters(self, rows: Sequence[Read], counts: Counts) -> None:
        counters = Counters(self._target, began=self.checkpoint.began)
        found = [row.entry for row in rows if isinstance(row.entry, Counted)]
        source = self._source.inner if isinstance(self._source, HashedSource) else self._source
        if self._choices.mirrored and isinstance(source, TableSource):
            counts.note(await self._target.each(found, lambda one: counters.follow(one.key, source.fresh)))
        else:
            counts.note(await self._target.each(found, counters.copy))

    async def _count_up(self) -> None:
        """Counts all uses first, and then writes. What is written carries a mark, so going on may count anew.

        Records that an earlier run has marked refuse it, and tell their mark: of those, what came after it is counted
        in a second round.
        """
        counts = self.checkpoint.counts["counters"] = Counts()
        await learn_rules(self._target.store.directory, self._rules)
        with Scratch(self._desk.folder, SCHEMA) as scratch:
            tally = Tally(scratch, self._rules, began=self.checkpoint.began, keyed=self._source.keyed)
            await self._read_uses(tally, counts)
            if marks := await self._write_counters(tally, counts):
                tally.mark(marks.items())
                tally.begin_anew("after")
                await self._read_uses(tally, Counts())
                counts.there += len(marks) - tally.count()
                if await self._write_counters(tally, counts):
                    raise StoreUnavailable("another migration is at work on the same counters; run this one again")

    async def _read_uses(self, tally: Tally, counts: Counts) -> None:
        size = await self._source.size("counters")
        batches = self._source.batches("counters", after=None, size=self._choices.batch_size)
        async with aclosing(ahead(batches)) as found:
            async for batch in found:
                await asyncio.to_thread(tally.add, uses_of(row.entry for row in batch.rows))
                counts.read += len(batch.rows)
                self._tell("counters", counts, batch.done, size)

    async def _write_counters(self, tally: Tally, counts: Counts) -> dict[Key, int]:
        """The marks of those that earlier runs have brought over."""
        counters = Counters(self._target, began=self.checkpoint.began)
        size, done = tally.count(), 0
        marks: dict[Key, int] = {}
        for several in _several(tally.counters()):
            fates = await self._target.each(several, lambda one: counters.add(one[0], one[1], mark=one[2]))
            for (key, *_), fate in zip(several, fates, strict=True):
                if isinstance(fate, int):
                    marks[key] = fate
                else:
                    counts.note([fate])
            done += len(several)
            self._tell("counters", counts, done, size)
        return marks

    def _save(self) -> None:
        self.checkpoint.units = self._units_before + self._target.store.stats.write_units
        self._desk.save(self.checkpoint)

    def _reject(self, entity: Entity, row: Read, counts: Counts) -> None:
        if self._choices.on_error == "stop":
            raise BadRow(f"{row.where}: {row.problem}; without --on-error stop it is set aside, and the rest goes on")
        counts.reject(row.problem)
        self._desk.reject(entity, row)


def _several(items: Iterable[T]) -> Iterator[list[T]]:
    iterator = iter(items)
    while several := list(islice(iterator, _SOME)):
        yield several


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
