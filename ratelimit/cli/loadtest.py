"""`ratelimit loadtest`: what a check costs on your own machine and table, and whether a change made it cost more."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ratelimit.cli.options import decimal, whole
from ratelimit.cli.output import INVALID, complain

if TYPE_CHECKING:
    from loadtest.plan import Group

app: Final = typer.Typer(help="Load tests with Locust, and reports of them.", no_args_is_help=True)


@app.command()
def run(
    groups: Annotated[
        list[str] | None, typer.Argument(help="checks, middleware, sidecar, usage; by default all.", show_default=False)
    ] = None,
    engine: Annotated[
        str, typer.Option(help="localstack, dynamodb-local, ministack or memory: started for the run.")
    ] = "localstack",
    store: Annotated[
        str | None, typer.Option(metavar="URL", help="A table of your own instead: dynamodb://TABLE?region=…")
    ] = None,
    foreign: Annotated[
        bool, typer.Option("--foreign", help="Write to that table even if it holds what no load test has written.")
    ] = False,
    users: Annotated[int, typer.Option(**whole(1, 100_000), help="Requests under way at once, at most.")] = 64,
    rate: Annotated[
        float | None, typer.Option(**decimal(0.1), help="Requests a second; by default what the engine keeps up with.")
    ] = None,
    duration: Annotated[float, typer.Option(**decimal(1), help="Seconds that each group is measured.")] = 60.0,
    warm_up: Annotated[float, typer.Option(**decimal(0), help="Seconds before that.")] = 5.0,
    processes: Annotated[int, typer.Option(**whole(1, 64), help="Processes of Locust on this machine.")] = 1,
    expect_workers: Annotated[
        int, typer.Option(**whole(0), help="Wait for so many Locust workers, which you start on other machines.")
    ] = 0,
    master_port: Annotated[int, typer.Option(**whole(1, 65535), help="Where they find this one.")] = 5557,
    host: Annotated[str, typer.Option(help="Where the servers under load and the master listen.")] = "127.0.0.1",
    seed: Annotated[int, typer.Option(**whole(), help="The same users in the same order.")] = 1,
    report: Annotated[Path | None, typer.Option(metavar="DIR", help="By default loadtest/report.")] = None,
    budgets: Annotated[Path | None, typer.Option(metavar="FILE", help="By default those that come with it.")] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Short (4 s a group), with budgets that only a fault breaks.")
    ] = False,
) -> int:
    """Start what is needed, put load on it at a constant rate, compare the books, and leave a report.

    Exit status: 0 every budget holds, 1 one does not (or the books differ), 2 bad input, 3 no engine to be had,
    130 interrupted.

    Examples:

        ratelimit loadtest run --engine ministack --duration 20

        ratelimit loadtest run middleware --store 'dynamodb://loadtest?region=eu-west-1' --rate 500
    """
    from ratelimit.loadtest.plan import Trouble
    from ratelimit.loadtest.run.options import BUDGETS, ENGINES, REPORT, Options

    known = _groups(groups)
    if isinstance(known, str):
        return complain(known, INVALID)
    if engine not in ENGINES:
        return complain(f"--engine: unknown engine {engine!r}; use one of {', '.join(ENGINES)}", INVALID)
    options = Options(
        groups=known, engine=engine, store=store, foreign=foreign, users=users, rate=rate,
        duration=4.0 if smoke else duration, warm_up=1.0 if smoke else warm_up, processes=processes,
        expect_workers=expect_workers, master_port=master_port, host=host, seed=seed, report=report or REPORT,
        budgets=budgets or BUDGETS, profile="smoke" if smoke else None,
        command=shlex.join(["ratelimit", *sys.argv[1:]]),
    )  # fmt: skip
    from ratelimit.loadtest.run.run import conclude

    try:
        status: int = conclude(options)
    except Trouble as trouble:
        return complain(trouble, trouble.status)
    return status


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(metavar="A.json", help="A run's report.json.", show_default=False)],
    after: Annotated[Path, typer.Argument(metavar="B.json", help="A later one.", show_default=False)],
) -> int:
    """What changed from one run to another, and whether it is more than the noise of both.

    Exit status: 0 nothing is clearly slower, 1 something is, 2 bad input.

    Examples:

        ratelimit loadtest compare before/report.json loadtest/report/report.json
    """
    from ratelimit.loadtest.compare import compare_files
    from ratelimit.loadtest.plan import Trouble

    try:
        status: int = compare_files(before, after)
    except Trouble as trouble:
        return complain(trouble, trouble.status)
    return status


def _groups(names: list[str] | None) -> tuple[Group, ...] | str:
    """Those named, in their own order; or what is wrong with them."""
    from ratelimit.loadtest.plan import GROUPS

    if unknown := set(names or ()) - set(GROUPS):
        return f"unknown group {min(unknown)!r}; there are {', '.join(GROUPS)}"
    return tuple(group for group in GROUPS if not names or group in names)
