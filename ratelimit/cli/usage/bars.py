"""Progress of long work: on stderr, and only where somebody looks at it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


@contextmanager
def bar(verb: str, *, size: int | None = None) -> Iterator[Callable[[int, int], None]]:
    """Call it with the events and the bytes so far; `size` is how many bytes there will be, where that is known."""
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
