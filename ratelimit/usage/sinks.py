"""Where an export goes: a file that appears when it is complete and can be gone on with, or a stream.

An unfinished `events.csv` is `events.csv.part`, and beside it `events.csv.checkpoint` says how far it got: where to
read on, and how many bytes were written by then. Whatever was written after that is cut off before going on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Final, Protocol

import msgspec

from ratelimit.errors import InvalidInput
from ratelimit.event import UsageEvent
from ratelimit.usage.formats import Encoder

_VERSION: Final = 1


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What an export is to hold, as it was asked for: a checkpoint is good for the same question only."""

    store: str
    """A name for the store, without secrets."""
    format: str
    user: str | None = None
    since: int | None = None
    """Milliseconds, as `until`."""
    until: int | None = None
    action: str | None = None
    allowed: bool | None = None
    parts: int = 1


class Checkpoint(msgspec.Struct, kw_only=True):
    """How far an export has come."""

    asked: Asked
    since: int
    """What the question's range came to when it was asked first; so does `until`."""
    until: int
    cursors: dict[int, str | None]
    """Where the parts that are left go on."""
    events: int = 0
    bytes: int = 0
    version: int = _VERSION


class Sink(Protocol):
    """Where events go. Every method may raise `OSError`."""

    def begin(self, checkpoint: Checkpoint) -> Checkpoint:
        """Make ready; where to begin, which is not at the beginning where there is something to go on with."""
        ...

    def write(self, events: Sequence[UsageEvent]) -> int:
        """The bytes that were written."""
        ...

    def save(self, checkpoint: Checkpoint) -> None:
        """Make sure of what was written so far."""
        ...

    def finish(self) -> int:
        """All is written; the size of it."""
        ...

    def abandon(self) -> None:
        """There will be no more for now."""
        ...


class File:
    """A sink that is a file of lines. Raises `InvalidInput` where it cannot begin as told."""

    def __init__(self, path: Path, encoder: Encoder, *, resume: bool) -> None:
        self._path = path
        self._encoder = encoder
        self._resume = resume
        self._part = beside(path, ".part")
        self._saved = beside(path, ".checkpoint")
        self._file: BinaryIO | None = None

    def begin(self, checkpoint: Checkpoint) -> Checkpoint:
        """See `Sink.begin`."""
        if self._resume:
            return self._go_on(checkpoint.asked)
        if self._saved.exists():
            raise InvalidInput(
                f"{self._saved} is of an export that was not finished; add --resume to go on with it, or delete it"
            )
        self._file = open(self._part, "wb", buffering=0)  # noqa: SIM115 - `abandon` closes it
        checkpoint.bytes += _write_all(self._file, self._encoder.head())
        self.save(checkpoint)
        return checkpoint

    def write(self, events: Sequence[UsageEvent]) -> int:
        """See `Sink.write`."""
        assert self._file is not None
        return _write_all(self._file, self._encoder.encode(events))

    def save(self, checkpoint: Checkpoint) -> None:
        """See `Sink.save`. The bytes are on the disk before the checkpoint that counts them."""
        assert self._file is not None
        os.fsync(self._file.fileno())
        fresh = beside(self._saved, ".new")
        fresh.write_bytes(msgspec.json.encode(checkpoint))
        os.replace(fresh, self._saved)

    def finish(self) -> int:
        """See `Sink.finish`."""
        assert self._file is not None
        size = self._file.tell()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._part, self._path)
        self._saved.unlink(missing_ok=True)
        return size

    def abandon(self) -> None:
        """See `Sink.abandon`. What there is stays, to be gone on with."""
        if self._file is not None:
            self._file.close()

    def _go_on(self, asked: Asked) -> Checkpoint:
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

    def _read(self) -> Checkpoint:
        try:
            checkpoint = msgspec.json.decode(self._saved.read_bytes(), type=Checkpoint)
        except FileNotFoundError:
            raise InvalidInput(f"there is no {self._saved}, so nothing to go on with; leave out --resume") from None
        except msgspec.DecodeError:
            raise InvalidInput(f"{self._saved} is damaged; delete it and begin anew, without --resume") from None
        if checkpoint.version != _VERSION:
            raise InvalidInput(f"{self._saved} is of another version; delete it and begin anew, without --resume")
        return checkpoint


class Stream:
    """A sink that is a stream, standard output for one: nothing to go on with."""

    def __init__(self, stream: BinaryIO, encoder: Encoder) -> None:
        self._stream = stream
        self._encoder = encoder
        self._size = 0

    def begin(self, checkpoint: Checkpoint) -> Checkpoint:
        """See `Sink.begin`."""
        self._write(self._encoder.head())
        return checkpoint

    def write(self, events: Sequence[UsageEvent]) -> int:
        """See `Sink.write`."""
        return self._write(self._encoder.encode(events))

    def save(self, checkpoint: Checkpoint) -> None:
        """Send on what is buffered."""
        self._stream.flush()

    def finish(self) -> int:
        """See `Sink.finish`."""
        self._stream.flush()
        return self._size

    def abandon(self) -> None:
        """See `Sink.abandon`."""

    def _write(self, lines: bytes) -> int:
        self._stream.write(lines)
        self._size += len(lines)
        return len(lines)


def beside(path: Path, suffix: str) -> Path:
    """`events.csv.part`."""
    return path.with_name(path.name + suffix)


def _write_all(file: BinaryIO, lines: bytes) -> int:
    """An unbuffered file may take less than it is given."""
    left = memoryview(lines)
    while left:
        left = left[file.write(left) :]
    return len(lines)


def _difference(before: Asked, now: Asked) -> str:
    return ", ".join(
        f"{name} was {getattr(before, name)!r} and is {getattr(now, name)!r}"
        for name in Asked.__struct_fields__
        if getattr(before, name) != getattr(now, name)
    )
