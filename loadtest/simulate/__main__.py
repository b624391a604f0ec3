"""`python -m ratelimit.loadtest.simulate`: choose a case, run each mode on it, compare."""

# No postponed annotations: typer reads them when the program runs.
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, NoReturn, cast

import msgspec
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ratelimit.errors import InvalidInput

from .simulation import Case, Keys, Mode, Result, hottest_share, simulate

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)


@app.command()
def main(
    processes: Annotated[int, typer.Option(help="Processes that share one table, each with its own limiter.")] = 100,
    rate: Annotated[float, typer.Option(help="Checks a second, of all processes together (Poisson).")] = 10_000,
    seconds: Annotated[float, typer.Option(help="Virtual seconds of demand; below 1 is fine for the largest.")] = 5,
    ramp: Annotated[float, typer.Option(help="Seconds over which the rate rises from 0; 0 is a cold start.")] = 0,
    keys: Annotated[str, typer.Option(help="`hot`: one user. `zipf`: 10,000 users, exponent 1.1.")] = "hot",
    limit: Annotated[
        str | None, typer.Option(help="Quota of each user; by default 80 % of what the hottest asks for.")
    ] = None,
    modes: Annotated[
        str, typer.Option(help="Of `plain`, `coalesced`, `lease=N`, `lease=auto`; separated by commas.")
    ] = "plain,coalesced,lease=100,lease=auto",
    regions: Annotated[
        int, typer.Option(help='Spread the processes over so many, with each user at home in one: `mode = "home"`.')
    ] = 1,
    crossing: Annotated[float, typer.Option(help="Milliseconds to another region and back.")] = 80,
    seed: Annotated[int, typer.Option(help="The same seed gives the same figures.")] = 1,
    json: Annotated[Path | None, typer.Option(help="Write all figures to this file.")] = None,
) -> None:
    """Many processes checking on one DynamoDB table, simulated on virtual time.

    The limiter, coalescer, denial cache and leases are the product's own; the table is simulated: 3.5 ms median latency
    with a long tail, and 1,000 writes a second on one item. Nothing waits: wall time is what is computed.

    **plain** writes for every check, as a naive client does. **coalesced** is what every policy does by itself.
    **lease=N** takes N units ahead per write; **lease=auto** as many as keep all processes together at about 500 writes
    a second.

    What to look for: *over* must be 0; *sent/s* should stay below 1,000; *under* and *early* are the price of a lease.

    Examples:

        python -m ratelimit.loadtest.simulate --processes 20 --rate 5000

        python -m ratelimit.loadtest.simulate --processes 1000 --rate 100000 --seconds 10 --ramp 4 --modes lease=auto

        python -m ratelimit.loadtest.simulate --keys zipf --rate 20000 --limit 500/day --json figures.json
    """
    try:
        chosen = [Mode.parse(mode) for mode in modes.split(",")]
        limit = limit or f"{max(1, round(0.8 * rate * (seconds - ramp / 2) * hottest_share(keys)))}/day"
        case = Case(
            processes=processes,
            rate=rate,
            seconds=seconds,
            ramp=ramp,
            keys=cast(Keys, keys),
            limit=limit,
            seed=seed,
            regions=regions,
            crossing_ms=crossing,
        )
    except InvalidInput as error:
        _leave(str(error))
    results = []
    for mode in chosen:
        typer.echo(f"{mode.name} ...", err=True)
        results.append(simulate(case, mode))
    _show(case, results)
    if json is not None:
        _save(case, results, json)
    if any(result.over_admission for result in results):
        _leave("a quota was exceeded: this is a bug", status=1)


def _leave(problem: str, *, status: int = 2) -> NoReturn:
    typer.echo(f"error: {problem}", err=True)
    sys.exit(status)


# What a simulation came to.

_COLUMNS: Final = (
    "mode", "p50\nms", "p99\nms", "p99.9\nms", "units\n/check", "sent/s\n1st s", "sent/s\nlater", "taken/s\n",
    "cross.\n/check", "throttles\n", "unav.\n%", "over\n", "under\n%", "early\n%", "held\n", "lost\n", "wall\ns",
)  # fmt: skip

_LEGEND: Final = """\
sent/s   writes a second sent to the hottest item: in the first second, and in the busiest one after it
cross.   writes that crossed to another region
taken/s  those that were not throttled, in the busiest second
unav.    checks that the store gave no answer to: left to the policy's on_unavailable, and refused here
over     units admitted beyond the quota          under  units within it, asked for, that nobody got
early    checks refused while another process still held units
held     units taken ahead when the demand ended  lost   those not back after a rolling stop of all processes"""


def _show(case: Case, results: Sequence[Result]) -> None:
    """Print the case, its table and what the columns mean."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 130)
    ramp = f", rising over {case.ramp:g} s" if case.ramp else ""
    regions = f", over {case.regions} regions, {case.crossing_ms:g} ms apart" if case.regions > 1 else ""
    console.print(
        f"{case.processes:,} processes, {case.rate:,.0f} checks/s on {case.keys} keys for {case.seconds:g} virtual s"
        f"{ramp}, {case.limit} a user, seed {case.seed}{regions}"
    )
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for number, column in enumerate(_COLUMNS):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for result in results:
        table.add_row(*_row(case, result))
    console.print(table)
    console.print(_LEGEND, style="dim")


def _row(case: Case, result: Result) -> list[str]:
    later = _short(result.attempted_peak) if len(result.attempted) > 1 else "-"
    return [
        result.mode,
        *(f"{milliseconds:.1f}" for milliseconds in (result.p50, result.p99, result.p999)),
        f"{result.units_per_check:.4f}",
        _short(result.attempted_first),
        later,
        _short(result.taken_peak),
        f"{result.crossings / max(1, result.checks):.4f}" if case.regions > 1 else "-",
        _short(result.throttles),
        f"{100 * result.unavailable:.2f}",
        f"{result.over_admission:,}",
        f"{100 * result.under_admission:.2f}",
        f"{100 * result.early:.2f}",
        _short(result.held),
        _short(result.lost),
        f"{result.wall_seconds:.1f}",
    ]


def _short(number: float) -> str:
    return f"{number:,.0f}" if number < 10_000 else f"{number / 1000:,.1f}k"


def _save(case: Case, results: Sequence[Result], path: Path) -> None:
    """Write everything as JSON, with the command that repeats it."""
    document = {
        "command": "python -m ratelimit.loadtest.simulate " + " ".join(sys.argv[1:]),
        "case": case,
        "results": results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")


if __name__ == "__main__":
    app(prog_name="python -m ratelimit.loadtest.simulate")
