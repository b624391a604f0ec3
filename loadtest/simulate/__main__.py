"""`python -m ratelimit.loadtest.simulate`: choose a case, run each mode on it, compare."""

# No postponed annotations: typer reads them when the program runs.
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, NoReturn, cast

import typer

from ratelimit.errors import InvalidInput

from .clients import Mode
from .demand import Keys, hottest_share
from .report import save, show
from .simulation import Case, simulate

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
    plot: Annotated[Path | None, typer.Option(help="Draw them to this PNG (needs matplotlib).")] = None,
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

        python -m ratelimit.loadtest.simulate --keys zipf --rate 20000 --limit 500/day --plot figures.png
    """
    if plot is not None and find_spec("matplotlib") is None:
        _leave("--plot needs matplotlib: pip install matplotlib")
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
    show(case, results)
    if json is not None:
        save(case, results, json)
    if plot is not None:
        from .report import plot as draw

        draw(case, results, plot)
    if any(result.over_admission for result in results):
        _leave("a quota was exceeded: this is a bug", status=1)


def _leave(problem: str, *, status: int = 2) -> NoReturn:
    typer.echo(f"error: {problem}", err=True)
    sys.exit(status)


if __name__ == "__main__":
    app(prog_name="python -m ratelimit.loadtest.simulate")
