"""`ratelimit migrate run`: bring it over, or say what that would do."""

# No postponed annotations in the commands: typer reads them when the program runs.
import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ratelimit.cli.migrate.progress import progress
from ratelimit.cli.migrate.report import say_done, say_forecast
from ratelimit.cli.migrate.shared import (
    AnyActionOption,
    EncodingOption,
    EntityOption,
    MappingOption,
    SourceArgument,
    WorkDirOption,
    explained,
    ordered,
)
from ratelimit.cli.output import REFUSED
from ratelimit.cli.settings import ConfigOption, JsonOption, StoreOption

if TYPE_CHECKING:
    from ratelimit.migrate import Counts, Entity, Order


def run(
    source: SourceArgument,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count, convert and estimate; write nothing at all.")
    ] = False,
    entity: EntityOption = None,
    batch_size: Annotated[int, typer.Option(help="Rows between two checkpoints.")] = 1000,
    rate: Annotated[float | None, typer.Option(help="Write units a second at most; by default as many as go.")] = None,
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
    store: StoreOption = None,
    config: ConfigOption = None,
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
    order = ordered(
        source, store=store, config=config, mapping=mapping, entities=entity, any_action=any_action,
        batch_size=batch_size, rate=rate, on_error=on_error, backup=backup, restart=restart, foreign=foreign,
        mirrored=mirrored, leave_rejected=leave_rejected, replace=tuple(replace or ()), encoding=encoding,
        work_dir=work_dir,
    )  # fmt: skip
    with explained(source, resumable=not dry_run):
        counts = (_would_be if dry_run else _brought)(order, as_json=as_json)
    return REFUSED if any(each.rejected for each in counts.values()) else 0


def _would_be(order: "Order", *, as_json: bool) -> "dict[Entity, Counts]":
    from ratelimit import migrate

    with progress() as tell:
        forecast = asyncio.run(migrate.dry_run(order, listener=tell))
    say_forecast(order, forecast, as_json=as_json)
    return forecast.counts


def _brought(order: "Order", *, as_json: bool) -> "dict[Entity, Counts]":
    from ratelimit import migrate

    with progress() as tell:
        done = asyncio.run(migrate.run(order, listener=tell))
    say_done(done, as_json=as_json)
    return done.checkpoint.counts
