"""Progress of long work, on stderr: a bar on a terminal; for what takes minutes also plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeAlias

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from ratelimit.cli.output import in_words
from ratelimit.clock import SECOND, Clock, SystemClock
from ratelimit.migrate.checkpoint import Counts, ProgressListener
from ratelimit.migrate.rows import Entity

_LINE_EVERY: Final = 10 * SECOND
_WORTH_A_RATE: Final = SECOND // 2

Show: TypeAlias = Callable[[str, str, int, int | None], None]


class Speed:
    """Rows a second, and how long the rest takes, from what was heard of one thing."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._what = ""
        self._start = (0, 0, 0)

    def hear(self, what: str, rows: int, done: int, size: int | None) -> tuple[str, str]:
        """Return the rate and the time left, for people."""
        now = self._clock.now()
        # A run that goes on did not begin at 0; and counters are counted first, then written.
        if what != self._what or rows < self._start[1] or done < self._start[2]:
            self._what, self._start = what, (now, rows, done)
        took, came, passed = now - self._start[0], rows - self._start[1], done - self._start[2]
        if took < _WORTH_A_RATE or came <= 0:
            return "", ""
        left = "" if not size or passed <= 0 else in_words(round(max(0, size - done) * took / passed / SECOND))
        return f"{came * SECOND / took:,.0f}/s", left and f"{left} left"


@contextmanager
def shown(*, in_lines: bool = True, transient: bool = False) -> Iterator[Show]:
    """Show how work goes: call it with a name, what is told of it, and how much of how much is `done`.

    On a terminal a bar for each name; elsewhere, where it is to be `in_lines`, one for a name that is new and every ten
    seconds.
    """
    if sys.stderr.isatty():
        with _bars(transient=transient) as bars:
            yield bars
        return
    clock, last, before = SystemClock(), 0, ""

    def tell(name: str, told: str, done: int, size: int | None) -> None:
        nonlocal last, before
        if in_lines and (name != before or clock.now() - last >= _LINE_EVERY):
            last, before = clock.now(), name
            part = f"{100 * min(done, size) // size} %, " if size else ""
            typer.echo(f"{name}: {part}{told}", err=True)

    yield tell


@contextmanager
def progress() -> Iterator[ProgressListener]:
    """Show how a migration goes; what is given is told of it."""
    speed = Speed(SystemClock())
    with shown() as show:

        def tell(entity: Entity, counts: Counts, done: int, size: int | None) -> None:
            rejected = f"{counts.rejected:,} rejected" if counts.rejected else ""
            told = (f"{counts.written:,} written", rejected, *speed.hear(entity, counts.read, done, size))
            show(entity, ", ".join([f"{counts.read:,} read", *filter(None, told)]), done, size)

        yield tell


@contextmanager
def progress_bar(verb: str, *, size: int | None = None) -> Iterator[Callable[[int, int], None]]:
    """Show how far events have come, where somebody looks: call it with the events and the bytes so far.

    `size` is how many bytes there will be, where that is known.
    """
    speed = Speed(SystemClock())
    with shown(in_lines=False, transient=True) as show:

        def tell(events: int, done: int) -> None:
            told = (f"{events:,} events", decimal(done), *speed.hear(verb, events, done, size))
            show(verb, ", ".join(filter(None, told)), done, size)

        show(verb, "", 0, size)
        yield tell


@contextmanager
def _bars(*, transient: bool) -> Iterator[Show]:
    columns = (
        SpinnerColumn(), TextColumn("{task.description:<8}"), BarColumn(), TextColumn("{task.fields[told]}"),
        TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=transient) as bars:
        tasks: dict[str, TaskID] = {}

        def tell(name: str, told: str, done: int, size: int | None) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=size, told="")
            bars.update(tasks[name], total=size, completed=done, told=told)

        yield tell
