"""`MigrationRun`: everything from a source to a table, batch by batch, with a checkpoint after each."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Final, Literal, Protocol, TypeAlias, TypeVar

from ratelimit.clock import SECOND, Clock, SystemClock
from ratelimit.errors import InvalidInput, StoreUnavailable
from ratelimit.event import UsageEvent
from ratelimit.migrate.checkpoint import Checkpoint, Counts, Scratch, Workspace
from ratelimit.migrate.counters import CounterWriter
from ratelimit.migrate.ledger import Ledger
from ratelimit.migrate.rows import Batch, Counted, Entity, Entry, Expired, Source, SourceRow
from ratelimit.migrate.tally import SCHEMA, Rules, Tally
from ratelimit.migrate.target import IdentityConflict, Target
from ratelimit.names import Key
from ratelimit.store.directory import DirectoryStore, Plan, User

T = TypeVar("T")

_SOME: Final = 200
OnError: TypeAlias = Literal["skip", "stop"]

DEFAULT_BATCH: Final = 1000


class ProgressListener(Protocol):
    """Hears how reading goes."""

    def __call__(self, entity: Entity, counts: Counts, done: int, size: int | None) -> None:
        """Hear of a batch: `done` of `size` (None where nobody knows it) is behind the counts."""
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
    leave_rejected: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= 10_000:
            raise InvalidInput(f"--batch-size must be from 1 to 10000, not {self.batch_size!r}")


class MigrationRun:
    """One migration, or what is left of it. `checkpoint` is where it stands."""

    def __init__(
        self,
        source: Source,
        target: Target,
        choices: Choices,
        *,
        workspace: Workspace,
        checkpoint: Checkpoint,
        rules: Rules,
        ledger: Ledger | None = None,
        clock: Clock | None = None,
        listener: ProgressListener,
    ) -> None:
        self.checkpoint = checkpoint
        self._source = source
        self._target = target
        self._choices = choices
        self._workspace = workspace
        self._rules = rules
        self._ledger = ledger
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
            checkpoint.done, checkpoint.counts, checkpoint.rejects_bytes, checkpoint.notes = [], {}, 0, []
            checkpoint.stamp = stamp
        self._workspace.begin(checkpoint)
        try:
            if self._choices.backup:
                await asyncio.to_thread(back_up, self._source.files, began=checkpoint.began)
            for entity in self._choices.entities:
                if entity not in checkpoint.done:
                    await self._one(entity)
        finally:
            self._workspace.close()
        self._workspace.finish()
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
        checkpoint.note(await self._source.notes())
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
                if batch.place is not None:
                    checkpoint.place, checkpoint.behind = batch.place, batch.done
                    self._save()
                self._tell(entity, counts, batch.done, size)

    async def _take(self, entity: Entity, rows: Sequence[SourceRow], counts: Counts) -> None:
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

    async def _take_events(self, rows: Sequence[SourceRow], counts: Counts) -> None:
        events = [row.entry for row in rows if isinstance(row.entry, UsageEvent)]
        counts.expired += sum(isinstance(row.entry, Expired) for row in rows)
        outcomes = await self._target.put_events(events)
        counts.note(outcomes)
        counts.there += len(events) - len(outcomes)  # the same one twice in the source

    async def _take_entries(self, entity: Entity, rows: Sequence[SourceRow], counts: Counts) -> None:
        entries = [row.entry for row in rows if isinstance(row.entry, User | Plan)]
        for entry in entries:
            self._rules.learn(entry.quotas)
        outcomes = await self._target.put_entries(entries, now=self._clock.now())
        for row, outcome in zip(rows, outcomes, strict=True):
            if isinstance(outcome, IdentityConflict):
                self._reject(entity, row._replace(problem=outcome.reason, text=repr(row.entry)), counts)
            else:
                counts.note([outcome])

    async def _take_counters(self, rows: Sequence[SourceRow], counts: Counts) -> None:
        counters = CounterWriter(self._target, now=self._clock.now(), ledger=self._ledger)
        found = [row.entry for row in rows if isinstance(row.entry, Counted)]
        counts.note(await self._target.each(found, counters.follow if self._choices.mirrored else counters.copy))

    async def _count_up(self) -> None:
        """Count all uses first, and then write. What is written carries a mark, so going on may count anew.

        Records that an earlier run has marked refuse it, and tell their mark: of those, what came after it is counted
        in a second round. Nothing is written while rows are rejected that belong before the marks.
        """
        counts = self.checkpoint.counts["counters"] = Counts()
        await learn_rules(self._target.store.directory, self._rules)
        now = self._clock.now()
        counters = CounterWriter(self._target, now=now, ledger=self._ledger)
        with Scratch(self._workspace.folder, SCHEMA) as scratch:
            tally = Tally(scratch, self._rules, now=now, keyed=self._source.keyed)
            rejected = await self._read_uses(tally, counts, self._keep_rejects)
            if rejected and not self._choices.leave_rejected:
                self.checkpoint.note([waiting(rejected, f" (they are in {self._workspace.rejects})")])
                return
            if marks := await self._write_counters(counters, tally, counts):
                tally.again(marks.items())
                await self._read_uses(tally, Counts(), lambda rows: None)
                counts.there += len(marks) - tally.count()
                if await self._write_counters(counters, tally, counts):
                    raise StoreUnavailable("another migration is at work on the same counters; run this one again")

    async def _read_uses(self, tally: Tally, counts: Counts, keep: Callable[[Sequence[SourceRow]], None]) -> int:
        """Return how many rows cannot be used; `keep` is told of them."""
        size, rejected = await self._source.size("counters"), 0
        batches = self._source.batches("counters", after=None, size=self._choices.batch_size)
        async with aclosing(ahead(batches)) as found:
            async for batch in found:
                await asyncio.to_thread(tally.add, uses_of(row.entry for row in batch.rows))
                counts.read += len(batch.rows)
                bad = [row for row in batch.rows if row.entry is None]
                rejected += len(bad)
                keep(bad)
                self._tell("counters", counts, batch.done, size)
        return rejected

    def _keep_rejects(self, rows: Sequence[SourceRow]) -> None:
        if "events" not in self._choices.entities:
            for row in rows:
                self._reject("counters", row, self.checkpoint.counts["counters"])

    async def _write_counters(self, counters: CounterWriter, tally: Tally, counts: Counts) -> dict[Key, int]:
        """Return the marks of those that earlier runs have brought over."""
        size, done = tally.count(), 0
        marks: dict[Key, int] = {}
        for some in chunks(tally.counters()):
            outcomes = await self._target.each(some, counters.add)
            for one, outcome in zip(some, outcomes, strict=True):
                if isinstance(outcome, int):
                    marks[one.key] = outcome
                else:
                    counts.note([outcome])
            done += len(some)
            self._tell("counters", counts, done, size)
        return marks

    def _save(self) -> None:
        self.checkpoint.units = self._units_before + self._target.store.stats.write_units
        self._workspace.save(self.checkpoint)

    def _reject(self, entity: Entity, row: SourceRow, counts: Counts) -> None:
        if self._choices.on_error == "stop":
            raise BadRow(f"{row.where}: {row.problem}; without --on-error stop it is set aside, and the rest goes on")
        counts.reject(row.problem)
        self._workspace.reject(entity, row)


def chunks(items: Iterable[T]) -> Iterator[list[T]]:
    """Yield a few at a time."""
    iterator = iter(items)
    while some := list(islice(iterator, _SOME)):
        yield some


def waiting(rejected: int, where: str = "") -> str:
    """Say why no counters are written: a mark says that all uses before it are in the record."""
    return (
        f"no counters are written while rows of use are rejected, {rejected:,} by now{where}: mend the mapping and run "
        "it again, or add --leave-rejected to count without them for good"
    )


def uses_of(entries: Iterable[Entry | None]) -> list[UsageEvent | Expired]:
    """Return those that count: what was refused spent nothing."""
    found = [entry for entry in entries if isinstance(entry, UsageEvent | Expired)]
    return [use for use in found if isinstance(use, Expired) or use.allowed]


async def learn_rules(directory: DirectoryStore, rules: Rules) -> None:
    """Teach the rules the quotas of all plans and users that are in the table, whoever put them there."""
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
    """Yield the same, the next one being read while one is used."""
    reading = asyncio.ensure_future(anext(batches, None))
    try:
        while (batch := await reading) is not None:
            reading = asyncio.ensure_future(anext(batches, None))
            yield batch
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await batches.aclose()


# A copy of a file source, beside it, before anything begins: `users.json.backup-20260105T120000Z`.

_SQLITE: Final = b"SQLite format 3\x00"


def back_up(files: Sequence[Path], *, began: int) -> list[Path]:
    """Make the copies, once for a migration that `began` then (µs). Raises `OSError`."""
    stamp = datetime.fromtimestamp(began // SECOND, UTC).strftime("%Y%m%dT%H%M%SZ")
    copies = []
    for file in files:
        copy = backup_of(file, stamp)
        if not copy.exists():
            part = copy.with_name(copy.name + ".part")
            _copy(file, part)
            part.replace(copy)
        copies.append(copy)
    return copies


def backup_of(file: Path, stamp: str) -> Path:
    """Return where the copy goes."""
    return file.with_name(f"{file.name}.backup-{stamp}")


def _copy(file: Path, to: Path) -> None:
    with file.open("rb") as opened:
        is_sqlite = opened.read(len(_SQLITE)) == _SQLITE
    if not is_sqlite:
        shutil.copy2(file, to)
        return
    # A database that is in use is copied whole only by SQLite itself.
    url = f"{file.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(url, uri=True)) as source, closing(sqlite3.connect(to)) as copy:
        source.backup(copy)
