"""`python -m loadtest.bench lane`: run one benchmark, print its table, keep its figures."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from loadtest.bench import app as app_bench
from loadtest.bench import embedded, export, hotkey, outage, peers, proxy_bodies, proxy_crowd
from loadtest.bench import lane as lane_bench
from loadtest.bench import proxy as proxy_bench
from loadtest.bench.report import report, save, show
from loadtest.bench.stub import stub_server

app = typer.Typer(add_completion=False, help=__doc__)


@app.callback()
def main() -> None:
    """Micro benchmarks: contenders take turns within one run, medians and ratios count."""


@app.command()
def lane(
    rounds: Annotated[int, typer.Option(help="Turns of each contender.")] = 7,
    seconds: Annotated[float, typer.Option(help="Length of one turn.")] = 0.4,
    at_once: Annotated[int, typer.Option(help="Calls at a time where calls a second are measured.")] = 32,
    uvloop: Annotated[bool, typer.Option(help="Run the clients on uvloop.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file.")] = None,
) -> None:
    """The client's own cost of a check, against a stub that answers at once."""
    factory = None
    if uvloop:
        import uvloop as loops

        factory = loops.new_event_loop
    with stub_server() as endpoint, asyncio.Runner(loop_factory=factory) as runner:
        figures = runner.run(lane_bench.run(endpoint, rounds=rounds, seconds=seconds, at_once=at_once))
    done = report("lane", sys.argv[2:], figures)
    show(done, at_once=at_once)
    if json is not None:
        save(done, json)


app.command("embedded")(embedded.command)
app.command("hotkey")(hotkey.command)
app.command("peers")(peers.command)
app.command("app")(app_bench.command)
app.command("proxy")(proxy_bench.command)
app.command("proxy-bodies")(proxy_bodies.command)
app.command("proxy-crowd")(proxy_crowd.command)
app.command("outage")(outage.command)
app.command("export")(export.command)


@app.command("all")
def every() -> None:
    """All of them, one after the other, as they come: some minutes."""
    for name in ("lane", "embedded", "hotkey", "outage", "app", "proxy", "proxy-bodies", "proxy-crowd", "peers"):
        if done := subprocess.run([sys.executable, "-m", "loadtest.bench", name], check=False).returncode:
            raise typer.Exit(done)


if __name__ == "__main__":
    app()
