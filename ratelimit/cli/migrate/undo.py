"""`ratelimit migrate undo`: take back what a run has written."""

# No postponed annotations in the commands: typer reads them when the program runs.
import asyncio
from pathlib import Path
from typing import Annotated

import typer

from ratelimit.cli.migrate.progress import progress
from ratelimit.cli.migrate.report import say_undone
from ratelimit.cli.migrate.shared import WorkDirOption, explained
from ratelimit.cli.output import REFUSED
from ratelimit.cli.settings import ConfigOption, JsonOption, StoreOption, load
from ratelimit.wiring import table_settings


def undo(
    runs: Annotated[list[str], typer.Argument(metavar="RUN…", help="As the run's report says.", show_default=False)],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be taken back.")] = False,
    rate: Annotated[float | None, typer.Option(help="Write units a second at most; by default as many as go.")] = None,
    work_dir: WorkDirOption = Path("."),
    store: StoreOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> int:
    """Take back what a run has written: its events, users and plans, and what it has added to counters and totals. What
    was used since stays, and so do users and plans that were changed since. Interrupted, the same command goes on.

    Exit status: 0 all is taken back, 1 some was changed since and stays, 2 bad input, 3 table unavailable.

    Examples:

        ratelimit migrate undo 20260105-120000-a1b2 --dry-run

        ratelimit migrate undo 20260105-120000-a1b2 20260106-080000-c3d4
    """
    from ratelimit import migrate

    target = table_settings(load(config, store).store)
    order = migrate.UndoOrder(runs=runs, target=target, rate=rate, dry_run=dry_run, work_dir=work_dir)
    with explained(str(work_dir), resumable=not dry_run), progress() as tell:
        undone = asyncio.run(migrate.undo(order, listener=tell))
    say_undone(undone, as_json=as_json)
    return REFUSED if undone.kept else 0
