"""What a comparison leaves behind: figures in rows, targets met or missed, the command that makes them again."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

import msgspec
from rich.console import Console
from rich.table import Table

KEPT: Final = Path(__file__).with_name("results")
"""The results that the documentation quotes."""
LATEST: Final = Path("reports", "bench")
"""Where a run leaves its own."""

Figure = float | int | None


class Row(msgspec.Struct, frozen=True):
    """One contender, or one case."""

    name: str
    figures: dict[str, Figure]
    """By column, in its order; None where there is none."""


class Target(msgspec.Struct, frozen=True):
    """What is promised of one figure."""

    promise: str
    figure: float
    sense: Literal["at least", "at most"]
    bound: float

    @property
    def met(self) -> bool:
        """Whether it is kept."""
        return self.figure >= self.bound if self.sense == "at least" else self.figure <= self.bound


class BenchReport(msgspec.Struct, frozen=True):
    """One run of one benchmark."""

    bench: str
    command: str
    date: str
    machine: str
    load: float
    """Of the last minute, when the run ended: other programs were at work where it is above the cores in use."""
    rows: list[Row]
    targets: list[Target] = []
    notes: list[str] = []
    """What could not be measured, and why; and whatever else a reader has to know."""


def bench_report(
    bench: str, rows: Sequence[Row], targets: Sequence[Target] = (), notes: Sequence[str] = (), *, arguments: str = ""
) -> BenchReport:
    """The figures, and where they come from."""
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    date = datetime.now(UTC).isoformat(timespec="seconds")
    command = f"python -m loadtest.bench {bench} {arguments}".rstrip()
    return BenchReport(bench, command, date, machine, round(load, 1), list(rows), list(targets), list(notes))


def conclude(done: BenchReport, file: Path | None) -> None:
    """Print it, hold it against the last one, and keep it."""
    file = file or LATEST / f"{done.bench}.json"
    last = read(file) or read(KEPT / f"{done.bench}.json")
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 140)
    console.print(_table(done))
    for target in done.targets:
        verdict = "[green]met   [/]" if target.met else "[red]MISSED[/]"
        console.print(f"{verdict} {target.promise}: {_text(target.figure)} ({target.sense} {_text(target.bound)})")
    for note in done.notes:
        console.print(f"[yellow]{note}[/]")
    if last is not None:
        console.print(_changes(done, last))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(msgspec.json.format(msgspec.json.encode(done)) + b"\n")


def read(file: Path) -> BenchReport | None:
    """A run that was kept; None where there is none, or it is of another kind."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=BenchReport)
    except (OSError, msgspec.DecodeError):
        return None


def _table(done: BenchReport) -> Table:
    table = Table(title=f"{done.command}\n{done.date}, {done.machine}, load {done.load}", title_justify="left")
    columns = _columns(done)
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for row in done.rows:
        table.add_row(row.name, *(_text(row.figures.get(column)) for column in columns))
    return table


def _changes(done: BenchReport, last: BenchReport) -> Table:
    table = Table(title=f"change since {last.date}: {last.command}", title_justify="left")
    columns = _columns(done)
    before: Mapping[str, Row] = {row.name: row for row in last.rows}
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for row in done.rows:
        old = before[row.name].figures if row.name in before else {}
        table.add_row(row.name, *(_change(old.get(column), row.figures.get(column)) for column in columns))
    return table


def _columns(done: BenchReport) -> list[str]:
    return list(dict.fromkeys(column for row in done.rows for column in row.figures))


def _change(old: Figure, new: Figure) -> str:
    if old is None or new is None:
        return "-"
    return f"{(new / old - 1) * 100:+.0f} %" if old else ("=" if new == old else "was 0")


def _text(figure: Figure) -> str:
    if figure is None:
        return "-"
    if isinstance(figure, int) or figure >= 100:
        return f"{figure:,.0f}"
    return f"{figure:.1f}" if figure >= 10 else f"{figure:.2f}" if figure >= 1 else f"{figure:.3g}"
