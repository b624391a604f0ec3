"""The table that a run prints, and the JSON that it leaves: the figures and the command that makes them again."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from loadtest.bench.measure import Figures


class Report(msgspec.Struct, frozen=True):
    """One run."""

    bench: str
    command: str
    date: str
    cores: int
    python: str
    figures: list[Figures]


def report(bench: str, arguments: Sequence[str], figures: list[Figures]) -> Report:
    """The figures, and where they come from."""
    command = " ".join(("python -m loadtest.bench", bench, *arguments))
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return Report(bench, command, date, os.cpu_count() or 1, platform.python_version(), figures)


def show(report: Report, *, at_once: int) -> None:
    """On the terminal."""
    table = Table(title=f"{report.command}\n{report.date}, {report.cores} cores, Python {report.python}")
    table.add_column("contender")
    for column in ("CPU µs", "less", f"calls/s, {at_once} at a time", "more", "CPU µs", "less"):
        table.add_column(column, justify="right")
    for one in report.figures:
        table.add_row(
            one.name,
            f"{one.cpu_us:,.0f}",
            f"{one.cpu_ratio:.1f} x",
            f"{one.per_second:,.0f}",
            f"{one.rate_ratio:.1f} x",
            f"{one.cpu_us_at_once:,.0f}",
            f"{one.cpu_ratio_at_once:.1f} x",
        )
    Console(file=sys.stdout).print(table)


def save(report: Report, path: Path) -> None:
    """As JSON."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
