"""What a simulation came to: a table for people, a document for programs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .simulation import Case, Result
from .table import WRITES_A_SECOND

_COLUMNS: Final = (
    "mode", "p50\nms", "p99\nms", "p99.9\nms", "units\n/check", "sent/s\n1st s", "sent/s\nlater", "taken/s\n",
    "cross.\n/check", "throttles\n", "unav.\n%", "over\n", "under\n%", "early\n%", "held\n", "lost\n", "wall\ns",
)  # fmt: skip

LEGEND: Final = """\
sent/s   writes a second sent to the hottest item: in the first second, and in the busiest one after it
cross.   writes that crossed to another region
taken/s  those that were not throttled, in the busiest second
unav.    checks that the store gave no answer to: left to the policy's on_unavailable, and refused here
over     units admitted beyond the quota          under  units within it, asked for, that nobody got
early    checks refused while another process still held units
held     units taken ahead when the demand ended  lost   those not back after a rolling stop of all processes"""


def show(case: Case, results: Sequence[Result], console: Console | None = None) -> None:
    """Print the case, its table and what the columns mean."""
    console = console or Console(highlight=False, width=None if sys.stdout.isatty() else 130)
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
    console.print(LEGEND, style="dim")


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


def save(case: Case, results: Sequence[Result], path: Path) -> None:
    """Write everything as JSON, with the command that repeats it."""
    document = {
        "command": "python -m ratelimit.loadtest.simulate " + " ".join(sys.argv[1:]),
        "case": case,
        "results": results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")


# The figures as a picture. matplotlib is imported here and nowhere else: the simulator runs without it.


def plot(case: Case, results: Sequence[Result], path: Path) -> None:
    """Three panels: writes on the hottest item over time, latency, and what became of the checks."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (writes, latency, fate) = pyplot.subplots(1, 3, figsize=(16, 5), layout="constrained")
    figure.suptitle(
        f"{case.processes:,} processes, {case.rate:,.0f} checks/s, {case.keys} keys, {case.limit} a user, "
        f"seed {case.seed}"
    )
    names = [result.mode for result in results]
    for result in results:
        # The last second is not a whole one.
        line = result.attempted[: max(1, int(case.seconds))]
        writes.plot(range(len(line)), line, marker="o", label=result.mode)
    writes.axhline(WRITES_A_SECOND, color="black", linestyle="--", label="what one item takes")
    writes.set(title="writes sent to the hottest item", xlabel="second", ylabel="writes/s", yscale="symlog")
    writes.set_ylim(bottom=0)
    writes.legend()

    for shift, (name, values) in enumerate(
        {"p50": [r.p50 for r in results], "p99": [r.p99 for r in results], "p99.9": [r.p999 for r in results]}.items()
    ):
        bars = latency.bar([at + 0.27 * (shift - 1) for at in range(len(names))], values, width=0.25, label=name)
        latency.bar_label(bars, fmt="%.1f", fontsize=8)
    latency.set(title="latency of a check", ylabel="ms", xticks=range(len(names)), xticklabels=names)
    latency.legend()

    for shift, (name, values) in enumerate(
        {
            "write units per 100 checks": [100 * r.units_per_check for r in results],
            "unavailable, % of checks": [100 * r.unavailable for r in results],
            "under-admission, % of quota": [100 * r.under_admission for r in results],
        }.items()
    ):
        bars = fate.bar([at + 0.27 * (shift - 1) for at in range(len(names))], values, width=0.25, label=name)
        fate.bar_label(bars, fmt="%.2g", fontsize=8)
    fate.set(title="what it costs", xticks=range(len(names)), xticklabels=names)
    fate.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
