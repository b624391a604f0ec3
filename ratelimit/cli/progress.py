"""Progress of long work, on stderr: a bar on a terminal; for a migration also plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

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


class Speed:
    """Rows a second, and how long the rest takes, from what was heard of one entity."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._entity: Entity | None = None
        self._start = (0, 0, 0)

    def hear(self, entity: Entity, rows: int, done: int, size: int | None) -> tuple[str, str]:
        """Return the rate and the time left, for people."""
        now = self._clock.now()
        # A run that goes on did not begin at 0; and counters are counted first, then written.
        if entity != self._entity or rows < self._start[1] or done < self._start[2]:
            self._entity, self._start = entity, (now, rows, done)
        took, came, passed = now - self._start[0], rows - self._start[1], done - self._start[2]
        if took < _WORTH_A_RATE or came <= 0:
            return "", ""
        left = "" if not size or passed <= 0 else in_words(round(max(0, size - done) * took / passed / SECOND))
        return f"{came * SECOND / took:,.0f}/s", left


@contextmanager
def progress(*, clock: Clock | None = None) -> Iterator[ProgressListener]:
    """Show how a migration goes; what is given is told of it."""
    yield from _bar(clock or SystemClock()) if sys.stderr.isatty() else _lines(clock or SystemClock())


def _lines(clock: Clock) -> Iterator[ProgressListener]:
    speed, last, entity_before = Speed(clock), 0, ""

    def tell(entity: Entity, counts: Counts, done: int, size: int | None) -> None:
        nonlocal last, entity_before
        rate, left = speed.hear(entity, counts.read, done, size)
        now = clock.now()
        if entity == entity_before and now - last < _LINE_EVERY:
            return
        last, entity_before = now, entity
        part = f" ({100 * min(done, size) // size} %)" if size else ""
        more = "".join(f", {text}" for text in (rate, f"{left} left" if left else "") if text)
        typer.echo(f"{entity}: {counts.read:,} read{part}, {_outcomes(counts)}{more}", err=True)

    yield tell


def _bar(clock: Clock) -> Iterator[ProgressListener]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<8}"),
        BarColumn(),
        TextColumn("{task.fields[told]}"),
        TimeElapsedColumn(),
    )
    speed = Speed(clock)
    with Progress(*columns, console=Console(stderr=True)) as shown:
        tasks: dict[Entity, TaskID] = {}

        def tell(entity: Entity, counts: Counts, done: int, size: int | None) -> None:
            rate, left = speed.hear(entity, counts.read, done, size)
            if entity not in tasks:
                tasks[entity] = shown.add_task(entity, total=size, told="")
            parts = (f"{counts.read:,} read", _outcomes(counts), rate, f"{left} left" if left else "")
            shown.update(tasks[entity], total=size, completed=done, told=", ".join(part for part in parts if part))

        yield tell


def _outcomes(counts: Counts) -> str:
    rejected = f", {counts.rejected:,} rejected" if counts.rejected else ""
    return f"{counts.written:,} written{rejected}"


@contextmanager
def progress_bar(verb: str, *, size: int | None = None) -> Iterator[Callable[[int, int], None]]:
    """Show how far events have come, where somebody looks: call it with the events and the bytes so far.

    `size` is how many bytes there will be, where that is known.
    """
    if not sys.stderr.isatty():
        yield lambda events, done: None
        return
    columns = (
        SpinnerColumn(),
        TextColumn(verb),
        *(() if size is None else (BarColumn(),)),
        TextColumn("{task.fields[events]:,} events, {task.fields[rate]}/s, {task.fields[shown]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(verb, total=size, events=0, rate="-", shown="")
        before: int | None = None

        def update(events: int, done: int) -> None:
            nonlocal before
            before = events if before is None else before  # an export that is gone on with did not begin at 0
            elapsed = progress.tasks[0].elapsed or 0.0
            rate = f"{(events - before) / elapsed:,.0f}" if elapsed > 1 else "-"
            progress.update(task, completed=done, events=events, rate=rate, shown=decimal(done))

        yield update
