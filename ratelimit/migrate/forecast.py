"""A dry run: everything is read and converted, nothing is written, neither to the table nor beside the source."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeAlias

import msgspec

from ratelimit.clock import SystemClock
from ratelimit.cost.estimate import load_prices
from ratelimit.dynamodb import DynamoDBStore
from ratelimit.errors import TableNotFound
from ratelimit.event import UsageEvent
from ratelimit.migrate.checkpoint import Counts, ProgressListener, Scratch
from ratelimit.migrate.ledger import Ledger
from ratelimit.migrate.plan import MigrationPlan, migration_settings, source_of
from ratelimit.migrate.rows import Counted, Entity, Entry, Expired, Source, SourceRow
from ratelimit.migrate.runner import check_found, opened, refusal_of, remarks_of, uses_of, waiting
from ratelimit.migrate.tally import SCHEMA, Rules, Tally
from ratelimit.migrate.target import COUNTER_UNITS, EVENT_UNITS, Pace, RawTable, TableProbe, entry_units
from ratelimit.quota import quotas_texts
from ratelimit.store.directory import Identity, IdentityTaken, Plan, User

FindOwner: TypeAlias = Callable[[Identity], Awaitable[str | None]]
"""The id of the user who has an identity in the table already."""

_OWNERS: Final = "CREATE TABLE owners (identity TEXT PRIMARY KEY, name TEXT) WITHOUT ROWID;"
_SAMPLES: Final = 3
USUAL_RATE: Final = 2_000
"""Write units a second that one process brings over without `--rate`, on one core of 2026."""


class Forecast(msgspec.Struct, kw_only=True):
    """What a run would do: at most, as nobody has looked for what is there already."""

    counts: dict[Entity, Counts] = {}
    """`written` is what would be."""
    samples: dict[Entity, list[str]] = {}
    rejected: dict[Entity, list[str]] = {}
    write_units: int = 0
    dollars: float = 0.0
    seconds: float = 0.0
    notes: list[str] = []


class DryRun:
    """Reads a source as a run would."""

    def __init__(
        self, plan: MigrationPlan, source: Source, *, now: int, listener: ProgressListener, owner: FindOwner
    ) -> None:
        self._plan = plan
        self._source = source
        self._now = now
        self._tell = listener
        self._owner = owner
        self.forecast = Forecast()

    async def all(self) -> Forecast:
        """Raises `SourceUnavailable`, `SourceRefused`, `OSError`."""
        forecast, entities = self.forecast, self._plan.chosen(await self._source.entities())
        counted = "counters" in entities and not self._source.totals
        schema, rules = SCHEMA + _OWNERS, Rules(self._plan.config.policies)
        with TemporaryDirectory(prefix="ratelimit-migrate-") as folder, Scratch(Path(folder), schema) as scratch:
            tally = Tally(scratch, rules, now=self._now, keyed=self._source.keyed)
            for entity in entities:
                if entity != "counters" or not counted or "events" not in entities:
                    await self._one(entity, tally, scratch)
            if counted:
                self._sum_up(tally.count())
        forecast.dollars = _dollars(forecast.write_units)
        forecast.seconds = forecast.write_units / (self._plan.rate or USUAL_RATE)
        return forecast

    async def _one(self, entity: Entity, tally: Tally, scratch: Scratch) -> None:
        forecast, source = self.forecast, self._source
        counts = forecast.counts[entity] = Counts()
        size = await source.size(entity)
        async with aclosing(source.batches(entity, after=None, size=self._plan.batch_size)) as batches:
            async for batch in batches:
                await asyncio.to_thread(tally.add, uses_of(row.entry for row in batch.rows))
                rows = [await self._owned(row, scratch) for row in batch.rows] if entity == "users" else batch.rows
                self._count(entity, rows, counts)
                self._tell(entity, counts, batch.done, size)

    async def _owned(self, row: SourceRow, scratch: Scratch) -> SourceRow:
        """Return the row with the problem that a run would have: another user has its e-mail."""
        if not isinstance(row.entry, User):
            return row
        for identity in row.entry.identities:
            first = scratch.one("SELECT name FROM owners WHERE identity = ?", str(identity))
            if (first or await self._owner(identity) or row.entry.id) != row.entry.id:
                return row._replace(entry=None, problem=str(IdentityTaken(identity)))
        mine = [(str(identity), row.entry.id) for identity in row.entry.identities]
        scratch.put("INSERT OR IGNORE INTO owners VALUES (?, ?)", mine)
        return row

    def _sum_up(self, counters: int) -> None:
        counts = self.forecast.counts
        uses = counts["events"] if "events" in counts else counts["counters"]
        if uses.rejected and not self._plan.leave_rejected:
            self.forecast.notes.append(waiting(uses.rejected))
            counters = 0
        counts.setdefault("counters", Counts(read=uses.read)).written = counters
        self.forecast.write_units += counters * COUNTER_UNITS

    def _count(self, entity: Entity, rows: Sequence[SourceRow], counts: Counts) -> None:
        counts.read += len(rows)
        for row in rows:
            if row.entry is None:
                counts.reject(row.problem)
                _sample(self.forecast.rejected, entity, f"{row.where}: {row.problem}")
            elif entity == "counters" and not self._source.totals:
                continue  # what comes of the uses is known when all of them have been read
            elif isinstance(row.entry, Expired):
                counts.expired += 1
            else:
                counts.written += 1
                self.forecast.write_units += _units(row.entry)
                _sample(self.forecast.samples, entity, row.entry)


def _units(entry: Entry) -> int:
    if isinstance(entry, User | Plan):
        return entry_units(entry)
    if isinstance(entry, UsageEvent):
        return EVENT_UNITS if entry.placed_by_id else 2 * EVENT_UNITS
    return COUNTER_UNITS


def _sample(samples: dict[Entity, list[str]], entity: Entity, shown: object) -> None:
    several = samples.setdefault(entity, [])
    if len(several) < _SAMPLES:
        several.append(shown if isinstance(shown, str) else in_short(shown))


def in_short(entry: Any) -> str:
    """Describe an entry in one line."""
    if isinstance(entry, UsageEvent):
        more = "" if entry.resource is None else f" {entry.resource}"
        return f"{entry.at:%Y-%m-%d %H:%M:%S} {entry.user} {entry.action}{more}"
    if isinstance(entry, Counted):
        return f"{entry.key.user} {entry.key.action}: {len(entry.record)} counters"
    quotas = ", ".join(f"{action} {text}" for action, text in quotas_texts(entry.quotas).items())
    if isinstance(entry, Plan):
        return f"{entry.name}: {quotas or 'no quotas'}"
    marks = ["" if entry.role == "user" else entry.role, "" if entry.active else "inactive", quotas]
    return " ".join([f"{entry.id}: plan {entry.plan or '-'}", *filter(None, marks)])


def _dollars(write_units: int) -> float:
    """Price it on demand, as `ratelimit cost` does. To find out what is there already takes half as many read units."""
    prices = load_prices()
    return float(write_units * prices.write_million + write_units * prices.read_million / 2) / 1_000_000


async def dry_run(plan: MigrationPlan, *, listener: ProgressListener) -> Forecast:
    """Return what a run would do. Raises as `run`."""
    Pace(plan.rate)  # says what is wrong with it
    clock = SystemClock()
    settings = migration_settings(plan.target)
    store = DynamoDBStore(settings)  # opened by its first use: a dry run needs no table
    async with opened(source_of(plan, clock)) as source, RawTable(settings) as raw, AsyncExitStack() as exits:
        exits.push_async_callback(store.close)
        remarks, is_there = await _remarked(plan, raw)

        async def owner(identity: Identity) -> str | None:
            return await store.directory.find(identity) if is_there else None

        forecast = await DryRun(plan, source, now=clock.now(), listener=listener, owner=owner).all()
        notes = await source.notes()
        check_found(source, forecast.counts, notes)
        forecast.notes += [*notes, *remarks]
    return forecast


async def _remarked(plan: MigrationPlan, raw: RawTable) -> tuple[list[str], bool]:
    """Return what is to be said of the table and of earlier runs, and whether the table is there.

    Raises `InvalidInput` for a run to replace that is not known.
    """
    try:
        probe, missing = await TableProbe.at(raw), ""
    except TableNotFound as error:
        probe, missing = TableProbe(empty=True, foreign=""), str(error)
    remarks = [missing] if missing else []
    if refusal := refusal_of(plan, probe):
        remarks.append(f"a run would be refused: {refusal}")
    else:
        remarks += remarks_of(probe)
    for run in plan.replace:
        with Ledger.of(plan.work_dir, run) as ledger:
            counts = ", ".join(f"{count:,} {entity}" for entity, count in ledger.counts().items())
        remarks.append(f"of run {run} would be taken back first: {counts}")
    return remarks, not missing
