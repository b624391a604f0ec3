"""`ratelimit migrate …`: bring data over from another home to the one table, compare, take back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias

import msgspec
import typer
from typer.core import TyperGroup

from ratelimit.cli.options import Configured, JsonOption, decimal, spread, whole
from ratelimit.cli.output import REFUSED, in_words, note, say, say_json, say_table, toml_value
from ratelimit.cli.progress import progress
from ratelimit.config import masked
from ratelimit.errors import InvalidInput, StoreMisconfigured, StoreUnavailable
from ratelimit.factory import table_settings

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

SourceArgument: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="mysql://…, postgresql://…, sqlite:///FILE, a JSON, JSONL or CSV file (.gz too) or a folder of them, "
        "earlier://TABLE?… or dynamodb://TABLE?…",
        show_default=False,
    ),
]
EntityOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--entity", metavar="NAME", help="plans, users, events or counters; may be repeated. By default all."),
]
MappingOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--mapping", metavar="FILE", help="Other tables and columns: `ratelimit migrate mapping`."),
]
EncodingOption: TypeAlias = Annotated[
    str, typer.Option("--encoding", metavar="NAME", help="Of text files: latin-1, cp1252, utf-16, …")
]
WorkDirOption: TypeAlias = Annotated[
    Path, typer.Option(metavar="DIR", help="For the checkpoint, the rejected rows, and what a run has written.")
]
AnyActionOption: TypeAlias = Annotated[
    bool, typer.Option("--any-action", help="Take actions that no policy names, too.")
]


@app.command("run")
@spread
def run(
    *,
    source: SourceArgument,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count, convert and estimate; write nothing at all.")
    ] = False,
    entity: EntityOption = None,
    batch_size: Annotated[int, typer.Option(**whole(), help="Rows between two checkpoints.")] = 1000,
    rate: Annotated[
        float | None, typer.Option(**decimal(), help="Write units a second at most; by default as many as go.")
    ] = None,
    mapping: MappingOption = None,
    on_error: Annotated[
        Literal["skip", "stop"], typer.Option(help="skip: bad rows are set aside. stop: the first one ends the run.")
    ] = "skip",
    any_action: AnyActionOption = False,
    backup: Annotated[bool, typer.Option("--backup/--no-backup", help="A copy of a file source, beside it.")] = True,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew; nothing is written twice.")] = False,
    foreign: Annotated[
        bool, typer.Option("--into-foreign", help="Write into a table that holds another project's items, too.")
    ] = False,
    mirrored: Annotated[
        bool, typer.Option("--mirrored", help="From a table whose `mirror` is this one: do not count twice.")
    ] = False,
    leave_rejected: Annotated[
        bool, typer.Option("--leave-rejected", help="Count without the rejected rows, for good; else counters wait.")
    ] = False,
    replace: Annotated[
        list[str] | None,
        typer.Option("--replace", metavar="RUN", help="Take this run back first; may be repeated."),
    ] = None,
    encoding: EncodingOption = "utf-8",
    work_dir: WorkDirOption = Path("."),
    at: Configured,
    as_json: JsonOption = False,
) -> int:
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
    plan = _plan(
        source, at, mapping=mapping, entities=entity, any_action=any_action,
        batch_size=batch_size, rate=rate, on_error=on_error, backup=backup, restart=restart, foreign=foreign,
        mirrored=mirrored, leave_rejected=leave_rejected, replace=tuple(replace or ()), encoding=encoding,
        work_dir=work_dir,
    )  # fmt: skip
    with _explained(source, resumable=not dry_run):
        counts = (_would_be if dry_run else _brought)(plan, as_json=as_json)
    return REFUSED if any(each.rejected for each in counts.values()) else 0


def _would_be(plan: "MigrationPlan", *, as_json: bool) -> "dict[Entity, Counts]":
    from ratelimit import migrate

    with progress() as tell:
        forecast = asyncio.run(migrate.dry_run(plan, listener=tell))
    _say_forecast(plan, forecast, as_json=as_json)
    return forecast.counts


def _brought(plan: "MigrationPlan", *, as_json: bool) -> "dict[Entity, Counts]":
    from ratelimit import migrate

    with progress() as tell:
        done = asyncio.run(migrate.run(plan, listener=tell))
    _say_done(done, as_json=as_json)
    return done.checkpoint.counts


@app.command("verify")
@spread
def verify(
    *,
    source: SourceArgument,
    entity: EntityOption = None,
    batch_size: Annotated[int, typer.Option(**whole(), help="Rows read at a time.")] = 1000,
    more_is_fine: Annotated[
        bool, typer.Option("--more-is-fine", help="The table is in use already: what it has besides is no difference.")
    ] = False,
    mapping: MappingOption = None,
    any_action: AnyActionOption = False,
    encoding: EncodingOption = "utf-8",
    work_dir: Annotated[Path, typer.Option(metavar="DIR", help="For a scratch file.")] = Path("."),
    at: Configured,
    as_json: JsonOption = False,
) -> int:
    """Compare source and table, both ways: counts and ids per user, day and action, a sample of events in whole, every
    user and plan, and every counter. Reads both sides completely; give the options that the run had.

    Exit status: 0 all of it is there, 1 it is not, 2 bad input, 3 source or table unavailable.

    Examples:

        ratelimit migrate verify mysql://app@db/app

        ratelimit migrate verify usage.jsonl --entity events --more-is-fine
    """
    plan = _plan(
        source, at, mapping=mapping, entities=entity, any_action=any_action,
        batch_size=batch_size, encoding=encoding, work_dir=work_dir,
    )  # fmt: skip
    from ratelimit import migrate

    with _explained(source, resumable=False), progress() as tell:
        verdict = asyncio.run(migrate.verify(plan, listener=tell, more_is_fine=more_is_fine))
    _say_verdict(verdict, as_json=as_json)
    return 0 if verdict.same else REFUSED


@app.command("undo")
@spread
def undo(
    *,
    runs: Annotated[list[str], typer.Argument(metavar="RUN…", help="As the run's report says.", show_default=False)],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be taken back.")] = False,
    rate: Annotated[
        float | None, typer.Option(**decimal(), help="Write units a second at most; by default as many as go.")
    ] = None,
    work_dir: WorkDirOption = Path("."),
    at: Configured,
    as_json: JsonOption = False,
) -> int:
    """Take back what a run has written: its events, users and plans, and what it has added to counters and totals. What
    was used since stays, and so do users and plans that were changed since. Interrupted, the same command goes on.

    Exit status: 0 all is taken back, 1 some was changed since and stays, 2 bad input, 3 table unavailable.

    Examples:

        ratelimit migrate undo 20260105-120000-123456-a1b2 --dry-run

        ratelimit migrate undo 20260105-120000-123456-a1b2 20260106-080000-654321-c3d4
    """
    from ratelimit import migrate

    settings = at.load()
    target = table_settings(settings.store, settings.regions)
    plan = migrate.UndoPlan(runs=runs, target=target, rate=rate, dry_run=dry_run, work_dir=work_dir)
    with _explained(str(work_dir), resumable=not dry_run), progress() as tell:
        undone = asyncio.run(migrate.undo(plan, listener=tell))
    _say_undone(undone, as_json=as_json)
    return REFUSED if undone.kept else 0


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


# The way from a command line to a source and a target.


def _plan(
    source: str,
    at: Configured,
    *,
    mapping: Path | None,
    entities: list[str] | None,
    **options: Any,
) -> MigrationPlan:
    """Return what a command line asks for. Raises `ConfigError`."""
    # Imported here: AWS's client and SQLAlchemy take their time, and `--help` does not need them.
    from ratelimit.migrate import MigrationPlan, read_mapping

    settings = at.load()
    return MigrationPlan(
        source=source,
        target=table_settings(settings.store, settings.regions),
        config=settings,
        mapping=read_mapping(mapping),
        entities=tuple(entities or ()),
        **options,
    )


@contextmanager
def _explained(spec: str, *, resumable: bool) -> Iterator[None]:
    """Make bad input of a file that cannot be used; say of what broke off how to go on."""
    hint = "; the same command goes on where it stopped" if resumable else ""
    try:
        yield
    except OSError as error:
        raise InvalidInput(f"{error.filename or masked(spec)}: {error.strerror or error}{hint}") from None
    except StoreMisconfigured:
        raise
    except (StoreUnavailable, KeyboardInterrupt):
        if resumable:
            note("not complete; the same command goes on where it stopped")
        raise


# What a migration has to say at its end.

_COLUMNS = ("", "read", "written", "already there", "kept as they are", "too old", "rejected")


def _say_forecast(plan: MigrationPlan, forecast: Forecast, *, as_json: bool) -> None:
    """Of a dry run."""
    if as_json:
        say_json(msgspec.to_builtins(forecast))
        return
    say("dry run: nothing was written\n")
    columns = ("", "read", "would be written", "too old", "rejected")
    say_table(
        columns,
        [
            (name, *_numbers(each.read, each.written, each.expired, each.rejected))
            for name, each in forecast.counts.items()
        ],
    )
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


def _say_done(done: Done, *, as_json: bool) -> None:
    """Of a run."""
    counts = done.checkpoint.counts
    if as_json:
        shown = {name: msgspec.to_builtins(each) for name, each in counts.items()}
        say_json(
            {
                "source": done.source, "run": done.run, "counts": shown, "write_units": done.checkpoint.units,
                "seconds": round(done.seconds, 3), "rejects": done.rejects, "notes": done.notes,
            }
        )  # fmt: skip
        return
    say(f"{done.source} is over")
    say_table(_COLUMNS, [(name, *_row(each)) for name, each in counts.items()])
    _say_reasons(counts)
    say(f"{done.checkpoint.units:,.0f} write units, {in_words(done.seconds)}")
    say(f"this was run {done.run}; `ratelimit migrate undo {done.run}` takes it back")
    if done.rejects is not None:
        note(f"the rejected rows are in {done.rejects}, with the reasons")
    for each in done.notes:
        note(each)


def _say_verdict(verdict: Verdict, *, as_json: bool) -> None:
    """Of a verification."""
    if as_json:
        say_json(msgspec.to_builtins(verdict))
        return
    say_table(
        ("", "in the source", "in the table", "missing", "more", "different", "rows compared"),
        [
            (name, *_numbers(each.source, each.target, each.missing, each.more, each.different, each.compared))
            for name, each in verdict.entities.items()
        ],
    )
    for one in verdict.differences:
        say(f"  {one.entity}: {one.what}: {one.source} in the source, {one.target} in the table")
    if verdict.hidden:
        say(f"  and {verdict.hidden:,} more")
    say("all of it is there" if verdict.same else "NOT the same")
    for each in verdict.notes:
        note(each)


def _say_undone(undone: Undone, *, as_json: bool) -> None:
    """Of what was taken back."""
    if as_json:
        say_json(msgspec.to_builtins(undone))
        return
    say("dry run: nothing was taken back\n" if undone.dry_run else f"taken back: {', '.join(undone.runs)}")
    column = "would be taken back" if undone.dry_run else "taken back"
    say_table(("", column), [(name, f"{count:,}") for name, count in undone.taken_back.items()])
    for each in undone.kept:
        note(f"left as it is: {each}")


def _say_reasons(counts: dict[Entity, Counts]) -> None:
    for name, each in counts.items():
        for reason, count in sorted(each.reasons.items(), key=lambda pair: -pair[1]):
            say(f"  {name}: {count:,} rejected: {reason}")


def _row(counts: Counts) -> tuple[str, ...]:
    return _numbers(counts.read, counts.written, counts.there, counts.kept, counts.expired, counts.rejected)


def _numbers(*several: int) -> tuple[str, ...]:
    return tuple(f"{each:,}" for each in several)
