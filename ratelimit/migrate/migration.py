"""`MigrationPlan`, and what is done with it: a dry run, a run, a verification."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from collections.abc import Mapping as AnyMapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import msgspec

from ratelimit.clock import Clock, SystemClock
from ratelimit.config import Config, masked
from ratelimit.dynamodb import DynamoDBStore, Settings
from ratelimit.errors import InvalidInput, TableNotFound
from ratelimit.migrate.checkpoint import Checkpoint, Workspace
from ratelimit.migrate.files import UTF_8
from ratelimit.migrate.forecast import DryRun, Forecast
from ratelimit.migrate.ledger import Ledger, RunInfo, conflicts, earlier_runs, place_of_table
from ratelimit.migrate.mapping import Mapping
from ratelimit.migrate.rows import ENTITIES, Entity, Source, SourceRefused
from ratelimit.migrate.runner import DEFAULT_BATCH, Choices, MigrationRun, OnError, ProgressListener
from ratelimit.migrate.sources import HashedSource, ReadOptions, known_actions, migration_settings, source_of
from ratelimit.migrate.tally import Rules
from ratelimit.migrate.target import Pace, RawTable, TableProbe, Target
from ratelimit.migrate.undo import UndoPlan, undo
from ratelimit.policy import timelines_of
from ratelimit.store.directory import Identity


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationPlan:
    """What is to be brought from where to where.

    `source`      a URL or a path, see `sources.source_of`.
    `target`      the table; it has to exist.
    `config`      the policies: their names are the actions that are known, their quotas say which counters there are.
    `entities`    none for all that the source has.
    `any_action`  also those that no policy names.
    `rate`        write units a second at most.
    `restart`     forget how far an earlier run came.
    `foreign`     also into a table that holds other things.
    `mirrored`    a mirror of the source, a table of this project, writes to the target already.
    `leave_rejected`  the counters leave out rows that were rejected; else they wait until none is.
    `encoding`    of text files.
    `replace`     runs that are taken back first.
    `work_dir`    where the checkpoint and the rejected rows go.
    """

    source: str
    target: Settings
    config: Config
    mapping: Mapping
    entities: Sequence[str] = ()
    any_action: bool = False
    batch_size: int = DEFAULT_BATCH
    rate: float | None = None
    on_error: OnError = "skip"
    backup: bool = True
    restart: bool = False
    foreign: bool = False
    mirrored: bool = False
    leave_rejected: bool = False
    encoding: str = UTF_8
    replace: Sequence[str] = ()
    work_dir: Path = Path()

    def open(self, clock: Clock) -> Source:
        """Return the source, not yet open. Raises `ConfigError`, `InvalidInput`."""
        actions = None if self.any_action else known_actions(self.config, self.mapping)
        terms = ReadOptions(
            mapping=self.mapping, clock=clock, actions=actions, costs=self._costs(), only=self._only,
            wanted=self.entities, encoding=self.encoding,
        )  # fmt: skip
        source = source_of(self.source, terms, self.target)
        secret = self.config.user_hash_key
        return source if secret is None else HashedSource(source, secret)

    def choices(self, there: Sequence[Entity]) -> Choices:
        """Return what is asked for of what is there, in the order in which it has to come. Raises `InvalidInput`."""
        for entity in self.entities:
            if entity not in there:
                has = ", ".join(there) or "nothing"
                raise InvalidInput(f"--entity: {masked(self.source)} has no {entity} (it has: {has})")
        return Choices(
            entities=tuple(entity for entity in there if not self.entities or entity in self.entities),
            batch_size=self.batch_size,
            on_error=self.on_error,
            backup=self.backup,
            mirrored=self.mirrored,
            leave_rejected=self.leave_rejected,
        )

    def workspace(self) -> Workspace:
        """Return the files of this migration: of this source, target and mapping."""
        target = (self.target.table, self.target.region, self.target.endpoint)
        actions = None if self.any_action else known_actions(self.config, self.mapping)
        known = None if actions is None else tuple(sorted(actions))
        return Workspace(
            self.work_dir, (masked(self.source), target, tuple(sorted(self.entities)), self.mapping, known)
        )

    def about(self, run: str) -> RunInfo:
        """Return what a run of this is about, for its ledger."""
        events = self.mapping.events
        settings = {
            f"events.{name}": ", ".join(found) if isinstance(found := getattr(events, name), tuple) else found
            for name in ("table", "id", "user", "action", "time", "cost", "allowed", "timezone", "time_format")
        }
        secret = self.config.user_hash_key
        hashed = "" if secret is None else blake2b(secret.encode(), digest_size=8).hexdigest()
        return RunInfo(
            run=run, source=masked(self.source), target=place_of_table(self.target),
            settings={**settings, "user_hash_key": hashed}, actions=dict(self.mapping.actions),
            costs={name: cost for name, cost in self._costs().items() if cost != 1},
        )  # fmt: skip

    def _costs(self) -> dict[str, int]:
        return {policy.name: policy.cost for policy in self.config.policies if isinstance(policy.cost, int)}

    @property
    def _only(self) -> Entity | None:
        """Return what a file is about whose name does not say it. Counters are counted from events."""
        named = {"events" if entity == "counters" else entity for entity in self.entities}
        return next((entity for entity in ENTITIES if named == {entity}), None)


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


async def dry_run(plan: MigrationPlan, *, listener: ProgressListener, clock: Clock | None = None) -> Forecast:
    """Return what a run would do. Raises as `run`."""
    Pace(plan.rate)  # says what is wrong with it
    clock = clock or SystemClock()
    settings = migration_settings(plan.target)
    store = DynamoDBStore(settings)  # opened by its first use: a dry run needs no table
    async with opened(plan.open(clock)) as source, RawTable(settings) as raw, AsyncExitStack() as exits:
        exits.push_async_callback(store.close)
        choices = plan.choices(await source.entities())
        remarks, is_there = await _remarked(plan, raw)
        rules = Rules(plan.config.policies)

        async def owner(identity: Identity) -> str | None:
            return await store.directory.find(identity) if is_there else None

        reading = DryRun(source, choices, rules=rules, now=clock.now(), listener=listener, owner=owner)
        forecast = await reading.all(rate=plan.rate)
        notes = await source.notes()
        check_found(source, {name: each.read for name, each in forecast.counts.items()}, notes)
        forecast.notes += [*notes, *remarks, *_conflicting(plan)]
    return forecast


def _conflicting(plan: MigrationPlan) -> list[str]:
    """Return what is to be said of earlier runs. Raises `InvalidInput` for a run to replace that is not known."""
    taken = []
    for run in plan.replace:
        with Ledger.of(plan.work_dir, run) as ledger:
            counts = ", ".join(f"{count:,} {entity}" for entity, count in ledger.counts().items())
        taken.append(f"of run {run} would be taken back first: {counts}")
    conflict = conflicts(plan.work_dir, plan.about(""), replaced=plan.replace)
    return [*taken, *([f"a run would be refused: {conflict}"] if conflict else [])]


async def _remarked(plan: MigrationPlan, raw: RawTable) -> tuple[list[str], bool]:
    """Return what is to be said of the table, and whether it is there."""
    try:
        probe = await TableProbe.at(raw)
    except TableNotFound as error:
        return [str(error)], False
    if probe.foreign and not plan.foreign:
        return [f"a run would be refused: {_refusal(plan, probe)}"], True
    return _remarks(probe), True


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
    async with opened(plan.open(clock)) as source, DynamoDBStore(settings) as store, RawTable(settings) as raw:
        choices = plan.choices(await source.entities())
        probe = await _admitted(plan, raw)
        if plan.replace:  # nothing of the new run is in the table by then
            back = UndoPlan(runs=plan.replace, target=plan.target, rate=plan.rate, work_dir=plan.work_dir)
            await undo(back, listener=listener, clock=clock)
        checkpoint = workspace.begun(clock.now())
        resumed = checkpoint.entity is not None or bool(checkpoint.done)
        with Ledger.begin(workspace.folder, plan.about(checkpoint.run)) as ledger:
            migration = MigrationRun(
                source, Target(store, raw, pace, ledger=ledger, timelines=timelines_of(plan.config.policies)), choices,
                workspace=workspace, checkpoint=checkpoint,
                rules=Rules(plan.config.policies), ledger=ledger, clock=clock, listener=listener,
            )  # fmt: skip
            await migration.all()
        check_found(source, {name: each.read for name, each in checkpoint.counts.items()}, checkpoint.notes)
        notes = [*checkpoint.notes, *([] if resumed else [*_remarks(probe), *_unknown_runs(plan, checkpoint)])]
    return Done(
        source=source.name,
        run=checkpoint.run,
        checkpoint=checkpoint,
        seconds=(clock.now() - started) / 1_000_000,
        notes=notes,
        rejects=str(workspace.rejects) if checkpoint.rejects_bytes else None,
    )


async def _admitted(plan: MigrationPlan, raw: RawTable) -> TableProbe:
    """Return what the table holds, before anything is written. Raises `InvalidInput` where the plan may not run."""
    probe = await TableProbe.at(raw)
    if probe.foreign and not plan.foreign:
        raise InvalidInput(_refusal(plan, probe))
    plan.work_dir.mkdir(parents=True, exist_ok=True)
    if conflict := conflicts(plan.work_dir, plan.about(""), replaced=plan.replace):
        raise InvalidInput(conflict)
    return probe


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


def check_found(source: Source, found: AnyMapping[Entity, int], notes: Sequence[str]) -> None:
    """Raise `SourceRefused` where nothing was found: that is no success."""
    if not any(found.values()):
        saw = "".join(f"; {each}" for each in notes)
        raise SourceRefused(
            f"nothing was found in {source.name}: no rows of {', '.join(found)}{saw}; where they have other names, "
            "tell in a --mapping FILE (`ratelimit migrate mapping` prints one to start from)"
        )


def _refusal(plan: MigrationPlan, probe: TableProbe) -> str:
    return (
        f"table {plan.target.table!r} holds what is not this project's ({probe.foreign}); name another table, "
        "or add --into-foreign to write beside it"
    )


def _remarks(probe: TableProbe) -> list[str]:
    if probe.foreign:
        return [f"the table holds what is not this project's: {probe.foreign}"]
    return [] if probe.empty else ["the table is not empty: what is there already is left as it is"]
