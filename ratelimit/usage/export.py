"""`export_events`: all events, or a user's, into a sink. Memory does not grow with their number.

A sink is a file that appears when it is complete and can be gone on with, or a stream. An unfinished `events.csv` is
`events.csv.part`, and beside it `events.csv.checkpoint` says how far it got: where to read on, and how many bytes were
written by then. Whatever was written after that is cut off before going on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import aclosing
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Final, Protocol, TypeAlias

import msgspec

from ratelimit.clock import Clock, SystemClock
from ratelimit.cursor import MAX_PAGE, Page, check_count
from ratelimit.errors import InvalidInput
from ratelimit.event import UsageEvent
from ratelimit.names import check_action, check_user
from ratelimit.retry import retry_store
from ratelimit.store.base import MAX_PARTS, Ask, Part, TableStore, each_part_page, first_cursors
from ratelimit.usage.formats import Encoder
from ratelimit.usage.queries import EventQuery, page_of, range_of

Progress: TypeAlias = Callable[[int, int], object]
"""Called with the events and the bytes so far."""

_SAVE_EVERY: Final = 20  # pages
_VERSION: Final = 2


async def export_events(
    store: TableStore,
    asked: ExportQuery,
    sink: Sink,
    *,
    clock: Clock | None = None,
    progress: Progress = lambda events, size: None,
) -> ExportCheckpoint:
    """Export every event that is asked for, once, and return what the sink holds at the end.

    A user's events come newest first, everybody's in no order. Those that come while it runs may be in it, or not.
    Encoding and writing a page of 1,000 events blocks the event loop, for some 10 ms. Raise `StoreUnavailable`,
    `InvalidInput`, `OutOfRetention`, and `OSError` for the sink; a `File` can be gone on with afterwards.
    """
    reached = sink.begin(_beginning(asked, clock or SystemClock()))
    saved = True
    try:
        ask = _source(store, reached, clock or SystemClock())
        progress(reached.events, reached.bytes)
        async with aclosing(each_part_page(ask, reached.cursors.copy(), of=asked.parts)) as pages:
            count = 0
            async for part, page in pages:
                _take(sink, reached, part, page)
                progress(reached.events, reached.bytes)
                count += 1
                if saved := count % _SAVE_EVERY == 0:
                    sink.save(reached)
        reached.bytes = sink.finish()
    except BaseException:  # also when told to stop: what was written is worth keeping
        try:
            if not saved:
                sink.save(reached)
        finally:
            sink.abandon()
        raise
    return reached


def _beginning(asked: ExportQuery, clock: Clock) -> ExportCheckpoint:
    if asked.action is not None:
        check_action(asked.action)
    check_count("parts", asked.parts, MAX_PARTS)
    if asked.user is not None and check_user(asked.user) and asked.parts > 1:
        raise InvalidInput("a user's events are read in their order: leave parts at 1")
    since, until = range_of(asked.since, asked.until, now=clock.now())
    return ExportCheckpoint(asked=asked, since=since, until=until, cursors=first_cursors(asked.parts))


def _take(sink: Sink, reached: ExportCheckpoint, part: int, page: Page[UsageEvent]) -> None:
    asked = reached.asked
    events = [
        event
        for event in page.entries
        if asked.action in (None, event.action) and asked.allowed in (None, event.allowed)
    ]
    if events:
        reached.bytes += sink.write(events)
        reached.events += len(events)
    if page.cursor is None:
        del reached.cursors[part]
    else:
        reached.cursors[part] = page.cursor


def _source(store: TableStore, reached: ExportCheckpoint, clock: Clock) -> Ask[UsageEvent]:
    user = reached.asked.user
    since, until = reached.since, reached.until

    async def of_all(part: Part, cursor: str | None) -> Page[UsageEvent]:
        return await retry_store(lambda: store.scans.events(since=since, until=until, cursor=cursor, part=part))

    async def of_user(_: Part, cursor: str | None) -> Page[UsageEvent]:
        assert user is not None
        asked = reached.asked
        query = EventQuery.of(user, now=clock.now(), since=asked.since, until=asked.until, cursor=cursor)
        page = await retry_store(lambda: page_of(store.events, query, MAX_PAGE))
        return Page(page.events, page.cursor)

    return of_all if user is None else of_user


class ExportQuery(msgspec.Struct, frozen=True, kw_only=True):
    """What an export is to hold, as it was asked for: a checkpoint is good for the same question only."""

    store: str
    """A name for the store, without secrets."""
    format: str
    user: str | None = None
    since: datetime | None = None
    """An aware one, as `until`, which is not included."""
    until: datetime | None = None
    action: str | None = None
    allowed: bool | None = None
    parts: int = 1


class ExportCheckpoint(msgspec.Struct, kw_only=True):
    """How far an export has come."""

    asked: ExportQuery
    since: int
    """Milliseconds, as `until`: what the question's range came to when it was asked first."""
    until: int
    cursors: dict[int, str | None]
    """Where the parts that are left go on."""
    events: int = 0
    bytes: int = 0
    version: int = _VERSION


class Sink(Protocol):
    """Where events go. Every method may raise `OSError`."""

    def begin(self, checkpoint: ExportCheckpoint) -> ExportCheckpoint:
        """Make ready, and return where to begin: elsewhere than asked where there is something to go on with."""

    def write(self, events: Sequence[UsageEvent]) -> int:
        """Write the events, and return the bytes that they took."""

    def save(self, checkpoint: ExportCheckpoint) -> None:
        """Make sure of what was written so far."""

    def finish(self) -> int:
        """End it, as all is written, and return the size of it."""

    def abandon(self) -> None:
        """Let go of it: there will be no more for now."""


class File:
    """A sink that is a file of lines. Raise `InvalidInput` where it cannot begin as told."""

    def __init__(self, path: Path, encoder: Encoder, *, resume: bool) -> None:
        self._path = path
        self._encoder = encoder
        self._resume = resume
        self._part = beside(path, ".part")
        self._saved = beside(path, ".checkpoint")
        self._file: BinaryIO | None = None

    def begin(self, checkpoint: ExportCheckpoint) -> ExportCheckpoint:
        if self._resume:
            return self._go_on(checkpoint.asked)
        if self._saved.exists():
            raise InvalidInput(
                f"{self._saved} is of an export that was not finished; add --resume to go on with it, or delete it"
            )
        self._file = open(self._part, "wb", buffering=0)  # noqa: SIM115 - `abandon` closes it
        checkpoint.bytes += _write_all(self._file, self._encoder.head)
        self.save(checkpoint)
        return checkpoint

    def write(self, events: Sequence[UsageEvent]) -> int:
        assert self._file is not None
        return _write_all(self._file, self._encoder.encode(events))

    def save(self, checkpoint: ExportCheckpoint) -> None:
        """Put the bytes on the disk, and only then the checkpoint that counts them."""
        assert self._file is not None
        os.fsync(self._file.fileno())
        fresh = beside(self._saved, ".new")
        fresh.write_bytes(msgspec.json.encode(checkpoint))
        os.replace(fresh, self._saved)

    def finish(self) -> int:
        assert self._file is not None
        size = self._file.tell()
        os.fsync(self._file.fileno())
        os.replace(self._part, self._path)
        self._file.close()
        self._saved.unlink(missing_ok=True)
        return size

    def abandon(self) -> None:
        if self._file is not None:
            self._file.close()

    def _go_on(self, asked: ExportQuery) -> ExportCheckpoint:
        checkpoint = self._read()
        if checkpoint.asked != asked:
            raise InvalidInput(
                f"{self._saved} is of another export: {_difference(checkpoint.asked, asked)}; "
                "repeat its options to go on with it, or name another file"
            )
        size = self._part.stat().st_size if self._part.exists() else -1
        if size < checkpoint.bytes:
            state = "is missing" if size < 0 else f"is shorter than the {checkpoint.bytes} bytes of its checkpoint"
            raise InvalidInput(f"{self._part} {state}; delete {self._saved} and begin anew, without --resume")
        self._file = open(self._part, "r+b", buffering=0)  # noqa: SIM115 - `abandon` closes it
        self._file.truncate(checkpoint.bytes)
        self._file.seek(checkpoint.bytes)
        return checkpoint

    def _read(self) -> ExportCheckpoint:
        try:
            checkpoint = msgspec.json.decode(self._saved.read_bytes(), type=ExportCheckpoint)
        except FileNotFoundError:
            raise InvalidInput(f"there is no {self._saved}, so nothing to go on with; leave out --resume") from None
        except msgspec.DecodeError:
            raise InvalidInput(f"{self._saved} is damaged; delete it and begin anew, without --resume") from None
        if checkpoint.version != _VERSION:
            raise InvalidInput(f"{self._saved} is of another version; delete it and begin anew, without --resume")
        return checkpoint


class StreamSink:
    """A sink that is a stream, standard output for one: nothing to go on with."""

    def __init__(self, stream: BinaryIO, encoder: Encoder) -> None:
        self._stream = stream
        self._encoder = encoder
        self._size = 0

    def begin(self, checkpoint: ExportCheckpoint) -> ExportCheckpoint:
        self._write(self._encoder.head)
        return checkpoint

    def write(self, events: Sequence[UsageEvent]) -> int:
        return self._write(self._encoder.encode(events))

    def save(self, checkpoint: ExportCheckpoint) -> None:
        self._stream.flush()

    def finish(self) -> int:
        self._stream.flush()
        return self._size

    def abandon(self) -> None:
        """Leave the stream as it is."""

    def _write(self, lines: bytes) -> int:
        self._stream.write(lines)
        self._size += len(lines)
        return len(lines)


def beside(path: Path, suffix: str) -> Path:
    """Return the path of `events.csv.part`."""
    return path.with_name(path.name + suffix)


def _write_all(file: BinaryIO, lines: bytes) -> int:
    """Write all: an unbuffered file may take less than it is given."""
    left = memoryview(lines)
    while left:
        left = left[file.write(left) :]
    return len(lines)


def _difference(before: ExportQuery, now: ExportQuery) -> str:
    return ", ".join(
        f"{name} was {getattr(before, name)!r} and is {getattr(now, name)!r}"
        for name in ExportQuery.__struct_fields__
        if getattr(before, name) != getattr(now, name)
    )
