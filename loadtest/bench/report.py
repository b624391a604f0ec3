"""What a benchmark finds, and what its report leaves behind: figures in rows, targets met or missed, the command that
makes them again."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeAlias

import msgspec
import typer
from rich.console import Console
from rich.table import Table

LATEST: Final = Path("reports", "bench")
"""Where a run leaves its figures."""

Figure = float | int | None

Rounds: TypeAlias = Annotated[int, typer.Option(help="Turns of each contender.")]
Seconds: TypeAlias = Annotated[float, typer.Option(help="Length of one turn.")]
AtOnce: TypeAlias = Annotated[int, typer.Option(help="Checks, or connections, at a time.")]
Uvloop: TypeAlias = Annotated[bool, typer.Option(help="Run the clients on uvloop.")]


class Row(msgspec.Struct, frozen=True):
    """One contender, or one case."""

    name: str
    figures: dict[str, Figure]
    """By column, in its order; None where there is none."""


class BenchTarget(msgspec.Struct, frozen=True):
    """What is promised of one figure."""

    promise: str
    figure: float
    sense: Literal["at least", "at most"]
    bound: float

    @property
    def met(self) -> bool:
        return self.figure >= self.bound if self.sense == "at least" else self.figure <= self.bound


class Findings(NamedTuple):
    """What a run of a benchmark has measured."""

    rows: Sequence[Row]
    targets: Sequence[BenchTarget] = ()
    notes: Sequence[str] = ()
    """What could not be measured, and why; and whatever else a reader has to know."""


class BenchReport(msgspec.Struct, frozen=True):
    """One run of one benchmark, and where its figures come from."""

    bench: str
    command: str
    date: str
    machine: str
    load: float
    """Of the last minute, when the run ended: other programs were at work where it is above the cores in use."""
    rows: list[Row]
    targets: list[BenchTarget] = []
    notes: list[str] = []


def reported(bench: str, run: Callable[..., Findings]) -> Callable[..., BenchReport]:
    """Return the command that makes a report of what `run` finds."""

    @wraps(run)
    def command(**options: Any) -> BenchReport:
        rows, targets, notes = run(**options)
        machine = (
            f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
        )
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        date = datetime.now(UTC).isoformat(timespec="seconds")
        again = " ".join(["python -m loadtest.bench", bench, *_as_typed(options)])
        return BenchReport(bench, again, date, machine, round(load, 1), [*rows], [*targets], [*notes])

    return command


def _as_typed(options: Mapping[str, object]) -> list[str]:
    """Return options as a command line has them, those too that are as by default."""
    typed = {f"--{name.replace('_', '-')}": value for name, value in options.items() if value is not False}
    return [name if value is True else f"{name} {value}" for name, value in typed.items()]


def conclude(done: BenchReport | None, file: Path | None = None) -> None:
    """Print a report, hold it against the last one, and keep it."""
    if done is None:  # of all of them
        return
    file = file or LATEST / f"{done.bench}.json"
    last = read(file)
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 140)
    title = f"{done.command}\n{done.date}, {done.machine}, load {done.load}"
    console.print(_table(title, done, lambda row, column: _text(row.figures.get(column))))
    for target in done.targets:
        verdict = "[green]met   [/]" if target.met else "[red]MISSED[/]"
        console.print(f"{verdict} {target.promise}: {_text(target.figure)} ({target.sense} {_text(target.bound)})")
    for note in done.notes:
        console.print(f"[yellow]{note}[/]")
    if last is not None:
        before = {row.name: row.figures for row in last.rows}
        title = f"change since {last.date}: {last.command}"
        console.print(
            _table(
                title, done, lambda row, column: _change(before.get(row.name, {}).get(column), row.figures.get(column))
            )
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(msgspec.json.format(msgspec.json.encode(done)) + b"\n")


def read(file: Path) -> BenchReport | None:
    """Read a run that was kept; None where there is none, or it is of another kind."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=BenchReport)
    except (OSError, msgspec.DecodeError):
        return None


def _table(title: str, done: BenchReport, cell: Callable[[Row, str], str]) -> Table:
    table = Table(title=title, title_justify="left")
    columns = list(dict.fromkeys(column for row in done.rows for column in row.figures))
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for row in done.rows:
        table.add_row(row.name, *(cell(row, column) for column in columns))
    return table


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
