"""`python -m loadtest.bench lane`: run one benchmark, print its table, keep its figures."""

from __future__ import annotations

import subprocess
import sys

import typer

from loadtest.bench import app as app_bench
from loadtest.bench import (
    cold,
    embedded,
    export,
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

app = typer.Typer(add_completion=False, help=__doc__)


@app.callback()
def main() -> None:
    """Micro benchmarks: contenders take turns within one run, medians and ratios count."""


app.command("lane")(lane.command)
app.command("embedded")(embedded.command)
app.command("hotkey")(hotkey.command)
app.command("peers")(peers.command)
app.command("app")(app_bench.command)
app.command("sidecar")(sidecar.command)
app.command("proxy-bodies")(proxy_bodies.command)
app.command("proxy-crowd")(proxy_crowd.command)
app.command("sync")(sync.command)
app.command("cold")(cold.command)
app.command("frameworks")(frameworks.command)
app.command("operations")(operations.command)
app.command("outage")(outage.command)
app.command("export")(export.command)
app.command("live")(live.command)
app.command("timeline")(timeline.command)


@app.command("all")
def every() -> None:
    """All of them, one after the other, as they come: some minutes."""
    names = (
        "lane embedded sync cold frameworks hotkey outage live app sidecar proxy-bodies proxy-crowd operations peers"
    )
    for name in names.split():
        if done := subprocess.run([sys.executable, "-m", "loadtest.bench", name], check=False).returncode:
            raise typer.Exit(done)


if __name__ == "__main__":
    app()
