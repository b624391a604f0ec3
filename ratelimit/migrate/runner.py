"""`run`: everything from a source to a table, batch by batch, with a checkpoint after each."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, closing
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from ratelimit.clock import SECOND, Clock, SystemClock
from ratelimit.dynamodb import DynamoDBStore
from ratelimit.errors import InvalidInput, StoreUnavailable
from ratelimit.event import UsageEvent
from ratelimit.migrate.checkpoint import Checkpoint, Counts, ProgressListener, Scratch, Workspace
from ratelimit.migrate.counters import CounterWriter
from ratelimit.migrate.files import is_sqlite
from ratelimit.migrate.ledger import Ledger, conflicts, earlier_runs
from ratelimit.migrate.plan import MigrationPlan, migration_settings, source_of
from ratelimit.migrate.rows import Counted, Entity, Entry, Expired, Source, SourceRefused, SourceRow, retried_pages
from ratelimit.migrate.tally import SCHEMA, Rules, Tally
from ratelimit.migrate.target import IdentityConflict, Pace, RawTable, TableProbe, Target
from ratelimit.migrate.undo import UndoPlan, undo
from ratelimit.names import Key
from ratelimit.policy import timelines_of
from ratelimit.store.directory import DirectoryStore, Plan, User

T = TypeVar("T")

_SOME: Final = 200


class BadRow(InvalidInput):
    """A row that cannot be used, and `on_error` is `stop`."""


class MigrationRun:
    """One migration, or what is left of it. `checkpoint` is where it stands."""

    def __init__(
        self,
        plan: MigrationPlan,
        source: Source,
        target: Target,
        *,
        workspace: Workspace,
        checkpoint: Checkpoint,
        ledger: Ledger,
        clock: Clock,
        listener: ProgressListener,
    ) -> None:
        self.checkpoint = checkpoint
        self._plan = plan
        self._source = source
        self._target = target
        self._workspace = workspace
        self._rules = Rules(plan.config.policies)
        self._ledger = ledger
        self._clock = clock
        self._tell = listener
        self._units_before = checkpoint.units

    async def all(self) -> None:
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
            if self._plan.backup:
                await asyncio.to_thread(back_up, self._source.files, began=checkpoint.began)
            for entity in self._plan.chosen(await self._source.entities()):
                if entity not in checkpoint.done:
                    await self._one(entity)
        finally:
            self._workspace.close()
        self._workspace.finish()

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
        batches = self._source.batches(entity, after=checkpoint.place, size=self._plan.batch_size)
        async with aclosing(batches):
            async for batch in batches:
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
        counts.note(await self._target.each(found, counters.follow if self._plan.mirrored else counters.copy))

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
            if rejected and not self._plan.leave_rejected:
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
        batches = self._source.batches("counters", after=None, size=self._plan.batch_size)
        async with aclosing(batches):
            async for batch in batches:
                await asyncio.to_thread(tally.add, uses_of(row.entry for row in batch.rows))
                counts.read += len(batch.rows)
                bad = [row for row in batch.rows if row.entry is None]
                rejected += len(bad)
                keep(bad)
                self._tell("counters", counts, batch.done, size)
        return rejected

    def _keep_rejects(self, rows: Sequence[SourceRow]) -> None:
        if self._plan.entities and "events" not in self._plan.entities:
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
        if self._plan.on_error == "stop":
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
        async for entries in retried_pages(partial(directory.page, kind, limit=_SOME)):
            for entry in entries:
                rules.learn(entry.quotas)


# A copy of a file source, beside it, before anything begins: `users.json.backup-20260105T120000Z`.


def back_up(files: Sequence[Path], *, began: int) -> None:
    """Make the copies, once for a migration that `began` then (µs). Raises `OSError`."""
    stamp = datetime.fromtimestamp(began // SECOND, UTC).strftime("%Y%m%dT%H%M%SZ")
    for file in files:
        copy = file.with_name(f"{file.name}.backup-{stamp}")
        if not copy.exists():
            part = copy.with_name(copy.name + ".part")
            _copy(file, part)
            part.replace(copy)


def _copy(file: Path, to: Path) -> None:
    if not is_sqlite(file):
        shutil.copy2(file, to)
        return
    # A database that is in use is copied whole only by SQLite itself.
    url = f"{file.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(url, uri=True)) as source, closing(sqlite3.connect(to)) as copy:
        source.backup(copy)


class Done(msgspec.Struct, kw_only=True):
    """What a run has come to, all earlier ones included that it went on with."""

    source: str
    run: str
    """Its id, by which it can be taken back."""
    checkpoint: Checkpoint
    seconds: float
    """Of this run."""
    notes: list[str]
    rejects: str | None
    """The file with the rejected rows."""


async def run(plan: MigrationPlan, *, listener: ProgressListener, clock: Clock | None = None) -> Done:
    """Bring everything over, or go on with that.

    Raises `InvalidInput` (`ConfigError`, `SourceRefused`, `BadRow` too), `StoreUnavailable` (`SourceUnavailable` too),
    `OSError` for a file. After any of the last two, and after a crash, the same plan goes on where it stopped.
    """
    clock = clock or SystemClock()
    workspace, pace, started = plan.workspace(), Pace(plan.rate), clock.now()
    if plan.restart:
        workspace.forget()
    settings = migration_settings(plan.target)
    async with opened(source_of(plan, clock)) as source, DynamoDBStore(settings) as store, RawTable(settings) as raw:
        plan.chosen(await source.entities())  # says what is not there, before anything else is asked
        probe = await TableProbe.at(raw)
        if refusal := refusal_of(plan, probe):
            raise InvalidInput(refusal)
        plan.work_dir.mkdir(parents=True, exist_ok=True)
        if plan.replace:  # nothing of the new run is in the table by then
            back = UndoPlan(runs=plan.replace, target=plan.target, rate=plan.rate, work_dir=plan.work_dir)
            await undo(back, listener=listener, clock=clock)
        checkpoint = workspace.begun(clock.now())
        resumed = checkpoint.entity is not None or bool(checkpoint.done)
        with Ledger.begin(workspace.folder, plan.about(checkpoint.run)) as ledger:
            timelines = timelines_of(plan.config.policies)
            migration = MigrationRun(
                plan, source, Target(store, raw, pace, ledger=ledger, timelines=timelines), workspace=workspace,
                checkpoint=checkpoint, ledger=ledger, clock=clock, listener=listener,
            )  # fmt: skip
            await migration.all()
        check_found(source, checkpoint.counts, checkpoint.notes)
        notes = [*checkpoint.notes, *([] if resumed else [*remarks_of(probe), *_unknown_runs(plan, checkpoint)])]
    return Done(
        source=source.name,
        run=checkpoint.run,
        checkpoint=checkpoint,
        seconds=(clock.now() - started) / 1_000_000,
        notes=notes,
        rejects=str(workspace.rejects) if checkpoint.rejects_bytes else None,
    )


def _unknown_runs(plan: MigrationPlan, checkpoint: Checkpoint) -> list[str]:
    """Return what is to be said of counters that were there, and of which no run has left a ledger here."""
    about = plan.about(checkpoint.run)
    counters = checkpoint.counts.get("counters")
    if counters is None or not counters.there or len(earlier_runs(plan.work_dir, about)) > 1:
        return []
    return [
        "earlier runs have marked counters of this table, and none from this source has left a ledger in "
        f"{plan.work_dir.absolute()}: whether they had these settings is not known; give the --work-dir that they had"
    ]


@asynccontextmanager
async def opened(source: Source) -> AsyncIterator[Source]:
    """Open a source, and close it again."""
    try:
        await source.open()
        yield source
    finally:
        await source.close()


def check_found(source: Source, counts: Mapping[Entity, Counts], notes: Sequence[str]) -> None:
    """Raise `SourceRefused` where nothing was found: that is no success."""
    if not any(each.read for each in counts.values()):
        saw = "".join(f"; {each}" for each in notes)
        raise SourceRefused(
            f"nothing was found in {source.name}: no rows of {', '.join(counts)}{saw}; where they have other names, "
            "tell in a --mapping FILE (`ratelimit migrate mapping` prints one to start from)"
        )


def refusal_of(plan: MigrationPlan, probe: TableProbe) -> str:
    """Say why nothing may be written: the table is another's, or an earlier run is in the way; empty where it may."""
    if probe.foreign and not plan.foreign:
        return (
            f"table {plan.target.table!r} holds what is not this project's ({probe.foreign}); name another table, "
            "or add --into-foreign to write beside it"
        )
    return conflicts(plan.work_dir, plan.about(""), replaced=plan.replace)


def remarks_of(probe: TableProbe) -> list[str]:
    """Return what is to be said of a table that is written to."""
    if probe.foreign:
        return [f"the table holds what is not this project's: {probe.foreign}"]
    return [] if probe.empty else ["the table is not empty: what is there already is left as it is"]
