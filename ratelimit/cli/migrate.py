"""`ratelimit migrate …`: bring data over from another home to the one table, compare, take back."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias

import typer
from typer.core import TyperGroup

from ratelimit.cli.options import ConfigOption, Configured, StoreOption, answering, decimal, whole
from ratelimit.cli.output import ALLOWED, REFUSED, Answer, explained, in_words, note, say, say_table, toml_value
from ratelimit.cli.progress import progress
from ratelimit.config import masked
from ratelimit.factory import configured_table

if TYPE_CHECKING:
    from ratelimit.migrate import Counts, Done, Entity, Forecast, MigrationPlan, Undone, Verdict


class _RunByDefault(TyperGroup):
    """`ratelimit migrate SOURCE --dry-run` is `ratelimit migrate run SOURCE --dry-run`."""

    def parse_args(self, ctx, args):  # type: ignore[no-untyped-def]
        """With the command that is meant put in."""
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app: Final = typer.Typer(
    cls=_RunByDefault,
    help="Bring plans, users, usage events and running counters over from a database, files or another table.",
    epilog="`ratelimit migrate SOURCE` is short for `ratelimit migrate run SOURCE`. The source is never changed.",
    no_args_is_help=True,
)

_AGAIN: Final = "the same command goes on where it stopped"

WorkDirOption: TypeAlias = Annotated[
    Path, typer.Option(metavar="DIR", help="For the checkpoint, the rejected rows, and what a run has written.")
]
RateOption: TypeAlias = Annotated[
    float | None, typer.Option(**decimal(), help="Write units a second at most; by default as many as go.")
]


@dataclass(frozen=True)
class SourceOptions:
    """From where to which table, and how rows are read."""

    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="mysql://…, postgresql://…, sqlite:///FILE, a JSON, JSONL or CSV file (.gz too) or a folder of them, "
            "earlier://TABLE?… or dynamodb://TABLE?…",
            show_default=False,
        ),
    ]
    entity: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="plans, users, events or counters; may be repeated. By default all."),
    ] = None
    batch_size: Annotated[int, typer.Option(**whole(), help="Rows read at a time, between two checkpoints.")] = 1000
    mapping: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Other tables and columns: `ratelimit migrate mapping`.")
    ] = None
    any_action: Annotated[bool, typer.Option("--any-action", help="Take actions that no policy names, too.")] = False
    encoding: Annotated[str, typer.Option(metavar="NAME", help="Of text files: latin-1, cp1252, utf-16, …")] = "utf-8"
    work_dir: WorkDirOption = Path(".")
    store: StoreOption = None
    config: ConfigOption = None

    def plan(self, **options: Any) -> MigrationPlan:
        """Return what a command line asks for. Raises `ConfigError`."""
        # Imported here: AWS's client and SQLAlchemy take their time, and `--help` does not need them.
        from ratelimit.migrate import MigrationPlan, read_mapping

        config = Configured(self.store, self.config).load()
        return MigrationPlan(
            source=self.source, target=configured_table(config), config=config,
            mapping=read_mapping(self.mapping), entities=tuple(self.entity or ()), any_action=self.any_action,
            batch_size=self.batch_size, encoding=self.encoding, work_dir=self.work_dir, **options,
        )  # fmt: skip


@dataclass(frozen=True)
class RunOptions:
    """What a run does with the rows."""

    rate: RateOption = None
    on_error: Annotated[
        Literal["skip", "stop"], typer.Option(help="skip: bad rows are set aside. stop: the first one ends the run.")
    ] = "skip"
    backup: Annotated[bool, typer.Option("--backup/--no-backup", help="A copy of a file source, beside it.")] = True
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew; nothing is written twice.")] = False
    foreign: Annotated[
        bool, typer.Option("--into-foreign", help="Write into a table that holds another project's items, too.")
    ] = False
    mirrored: Annotated[
        bool, typer.Option("--mirrored", help="From a table whose `mirror` is this one: do not count twice.")
    ] = False
    leave_rejected: Annotated[
        bool, typer.Option("--leave-rejected", help="Count without the rejected rows, for good; else counters wait.")
    ] = False
    replace: Annotated[
        list[str] | None, typer.Option(metavar="RUN", help="Take this run back first; may be repeated.")
    ] = None


@app.command("run")
@answering
def run(
    *,
    given: SourceOptions,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count, convert and estimate; write nothing at all.")
    ] = False,
    how: RunOptions,
) -> Answer:
    """Bring plans, users, usage events and running counters into the table. What is there already is left as it is.

    Interrupted, even by kill -9, the same command goes on where it stopped. A later run adds what came since: events
    are known by ids made of their rows, counters carry a mark. While rows of use are rejected, counters wait. Every run
    has an id: after a mistake in the mapping `--replace RUN` brings it anew, `migrate undo RUN` takes it back.

    Exit status: 0 all is over, 1 some rows were rejected (they are in a file, with the reasons), 2 bad input, 3 source
    or table unavailable.

    Examples:

        ratelimit migrate mysql://app@db/app --dry-run

        ratelimit migrate sqlite:///app.db --rate 500

        ratelimit migrate usage.jsonl.gz --entity events --entity counters

        ratelimit migrate 'earlier://old_main?region=eu-west-1' --store 'dynamodb://limits?region=eu-west-1'
    """
    plan = given.plan(**{**asdict(how), "replace": tuple(how.replace or ())})
    from ratelimit import migrate

    with explained(masked(plan.source), "" if dry_run else _AGAIN), progress() as tell:
        if dry_run:
            return _forecast(plan, asyncio.run(migrate.dry_run(plan, listener=tell)))
        return _done(asyncio.run(migrate.run(plan, listener=tell)))


@app.command("verify")
@answering
def verify(
    *,
    given: SourceOptions,
    more_is_fine: Annotated[
        bool, typer.Option("--more-is-fine", help="The table is in use already: what it has besides is no difference.")
    ] = False,
) -> Answer:
    """Compare source and table, both ways: counts and ids per user, day and action, a sample of events in whole, every
    user and plan, and every counter. Reads both sides completely; give the options that the run had.

    Exit status: 0 all of it is there, 1 it is not, 2 bad input, 3 source or table unavailable.

    Examples:

        ratelimit migrate verify mysql://app@db/app

        ratelimit migrate verify usage.jsonl --entity events --more-is-fine
    """
    plan = given.plan()
    from ratelimit import migrate

    with explained(masked(plan.source)), progress() as tell:
        verdict = asyncio.run(migrate.verify(plan, listener=tell, more_is_fine=more_is_fine))
    return Answer(verdict, lambda: _show_verdict(verdict), status=ALLOWED if verdict.same else REFUSED)


@app.command("undo")
@answering
def undo(
    *,
    runs: Annotated[list[str], typer.Argument(metavar="RUN…", help="As the run's report says.", show_default=False)],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be taken back.")] = False,
    rate: RateOption = None,
    work_dir: WorkDirOption = Path("."),
    at: Configured,
) -> Answer:
    """Take back what a run has written: its events, users and plans, and what it has added to counters and totals. What
    was used since stays, and so do users and plans that were changed since. Interrupted, the same command goes on.

    Exit status: 0 all is taken back, 1 some was changed since and stays, 2 bad input, 3 table unavailable.

    Examples:

        ratelimit migrate undo 20260105-120000-123456-a1b2 --dry-run

        ratelimit migrate undo 20260105-120000-123456-a1b2 20260106-080000-654321-c3d4
    """
    from ratelimit import migrate

    settings = at.load()
    target = configured_table(settings)
    plan = migrate.UndoPlan(runs=runs, target=target, rate=rate, dry_run=dry_run, work_dir=work_dir)
    with explained(str(work_dir), "" if dry_run else _AGAIN), progress() as tell:
        undone = asyncio.run(migrate.undo(plan, listener=tell))
    return Answer(undone, lambda: _show_undone(undone), status=REFUSED if undone.kept else ALLOWED)


@app.command("mapping")
def mapping(
    file: Annotated[
        Path | None, typer.Option("--mapping", metavar="FILE", help="One's own; by default the built-in one.")
    ] = None,
) -> None:
    """Print the mapping as TOML: which tables and columns mean what. The first name of a list that exists is taken.

    Example:

        ratelimit migrate mapping > mapping.toml
    """
    from ratelimit.migrate import read_mapping

    found = read_mapping(file)
    for section in ("events", "users", "plans"):
        part = getattr(found, section)
        say(f"[{section}]")
        for each in fields(part):
            if each.name != "quotas":
                say(f"{each.name} = {toml_value(getattr(part, each.name))}")
        if quotas := getattr(part, "quotas", None):
            say(f"\n[{section}.quotas]")
            for action, column in quotas.items():
                say(f"{toml_value(action)} = {toml_value(column)}")
        say("")
    say("[actions]")
    for old, new in found.actions.items():
        say(f"{toml_value(old)} = {toml_value(new)}")


# What a migration has to say at its end.


def _forecast(plan: MigrationPlan, forecast: Forecast) -> Answer:
    def show() -> None:
        say("dry run: nothing was written\n")
        _show_counts(forecast.counts, read="read", written="would be written", expired="too old", rejected="rejected")
        for entity, samples in forecast.samples.items():
            say(f"{entity}, for example")
            for sample in samples:
                say(f"  {sample}")
        _say_reasons(forecast.counts)
        for samples in forecast.rejected.values():
            for sample in samples:
                say(f"    {sample}")
        at = f"at {plan.rate:g} units a second" if plan.rate else "at the usual speed, without --rate"
        say(
            f"\nestimate: {forecast.write_units:,} write units, {forecast.dollars:.2f} USD on demand, "
            f"{in_words(forecast.seconds)} {at}"
        )
        for each in forecast.notes:
            note(each)

    return Answer(forecast, show, status=_status(forecast.counts))


def _done(done: Done) -> Answer:
    counts = done.checkpoint.counts

    def show() -> None:
        say(f"{done.source} is over")
        _show_counts(
            counts, read="read", written="written", there="already there", kept="kept as they are", expired="too old",
            rejected="rejected",
        )  # fmt: skip
        _say_reasons(counts)
        say(f"{done.checkpoint.units:,.0f} write units, {in_words(done.seconds)}")
        say(f"this was run {done.run}; `ratelimit migrate undo {done.run}` takes it back")
        if done.rejects is not None:
            note(f"the rejected rows are in {done.rejects}, with the reasons")
        for each in done.notes:
            note(each)

    document = {
        "source": done.source, "run": done.run, "counts": counts, "write_units": done.checkpoint.units,
        "seconds": round(done.seconds, 3), "rejects": done.rejects, "notes": done.notes,
    }  # fmt: skip
    return Answer(document, show, status=_status(counts))


def _show_verdict(verdict: Verdict) -> None:
    _show_counts(
        verdict.entities, source="in the source", target="in the table", missing="missing", more="more",
        different="different", rejected="rejected", compared="rows compared",
    )  # fmt: skip
    for one in verdict.differences:
        say(f"  {one.entity}: {one.what}: {one.source} in the source, {one.target} in the table")
    if verdict.hidden:
        say(f"  and {verdict.hidden:,} more")
    rejected = any(each.rejected for each in verdict.entities.values())
    all_of_it = "all of it is there, but for what is rejected" if rejected else "all of it is there"
    say(all_of_it if verdict.same else "NOT the same")
    for each in verdict.notes:
        note(each)


def _show_undone(undone: Undone) -> None:
    say("dry run: nothing was taken back\n" if undone.dry_run else f"taken back: {', '.join(undone.runs)}")
    column = "would be taken back" if undone.dry_run else "taken back"
    say_table(("", column), [(name, f"{count:,}") for name, count in undone.taken_back.items()])
    for each in undone.kept:
        note(f"left as it is: {each}")


def _show_counts(counts: Mapping[Entity, object], **columns: str) -> None:
    """Print a row for each entity, with the counts that the columns are called by."""
    rows = [(name, *(f"{getattr(each, field):,}" for field in columns)) for name, each in counts.items()]
    say_table(("", *columns.values()), rows)


def _status(counts: dict[Entity, Counts]) -> int:
    return REFUSED if any(each.rejected for each in counts.values()) else ALLOWED


def _say_reasons(counts: dict[Entity, Counts]) -> None:
    for name, each in counts.items():
        for reason, count in sorted(each.reasons.items(), key=lambda pair: -pair[1]):
            say(f"  {name}: {count:,} rejected: {reason}")
