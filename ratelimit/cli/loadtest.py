"""`ratelimit loadtest`: what a check costs on your own machine and table, and whether a change made it cost more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final

import typer

from ratelimit.cli.options import spread
from ratelimit.cli.output import complain
from ratelimit.loadtest.options import Options
from ratelimit.loadtest.plan import Trouble

app: Final = typer.Typer(help="Load tests with Locust, and reports of them.", no_args_is_help=True)


@app.command()
@spread
def run(*, options: Options) -> int:
    """Start what is needed, put load on it at a constant rate, compare the books, and leave a report.

    Exit status: 0 every budget holds, 1 one does not (or the books differ), 2 bad input, 3 no engine to be had,
    130 interrupted.

    Examples:

        ratelimit loadtest run --engine ministack --duration 20

        ratelimit loadtest run middleware --store 'dynamodb://loadtest?region=eu-west-1' --rate 500
    """
    from ratelimit.loadtest.run import conclude

    if options.smoke:
        options = replace(options, duration=4.0, warm_up=1.0)
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

    try:
        status: int = compare_files(before, after)
    except Trouble as trouble:
        return complain(trouble, trouble.status)
    return status
