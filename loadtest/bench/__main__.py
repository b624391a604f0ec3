"""`python -m loadtest.bench lane`: run one benchmark, print its table, keep its figures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from loadtest.bench import app as app_bench
from loadtest.bench import (
    cold,
    embedded,
    frameworks,
    hotkey,
    lane,
    live,
    operations,
    outage,
    peers,
    proxy_bodies,
    proxy_crowd,
    sidecar,
    sync,
    timeline,
)
from loadtest.bench.report import conclude, reported

app = typer.Typer(add_completion=False, result_callback=conclude)

BENCHES: Final = {
    "lane": lane.run,
    "embedded": embedded.run,
    "sync": sync.run,
    "cold": cold.run,
    "frameworks": frameworks.run,
    "hotkey": hotkey.run,
    "outage": outage.run,
    "live": live.run,
    "app": app_bench.run,
    "sidecar": sidecar.run,
    "proxy-bodies": proxy_bodies.run,
    "proxy-crowd": proxy_crowd.run,
    "operations": operations.run,
    "peers": peers.run,
}
for name, run in {**BENCHES, "timeline": timeline.run}.items():
    app.command(name)(reported(name, run))


@app.callback()
def main(
    file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Keep the figures in this file.")] = None,
) -> None:
    """Micro benchmarks: contenders take turns within one run, medians and ratios count."""


@app.command("all")
def every() -> None:
    """All that contend, one after the other, as they come: some minutes."""
    for bench in BENCHES:
        if done := subprocess.run([sys.executable, "-m", "loadtest.bench", bench], check=False).returncode:
            raise typer.Exit(done)


if __name__ == "__main__":
    app()
