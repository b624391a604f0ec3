"""The journal's files. Each process has a lane of its own: a lock that dies with it, and numbered segments.

    <lane>.lock              held with `flock` as long as the process lives
    <lane>-000001.journal    frames, appended only
    ….journal.damaged        one that was not sound in the middle: nobody reads it again, and nobody deletes it

Whoever gets the lock of another lane may adopt its segments: the process that wrote them is dead. The directory has
to be on a local file system. Everything here blocks, and runs in the journal's thread.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO, Final, NamedTuple
from weakref import WeakSet
from zlib import crc32

import msgspec

from ratelimit.event import UsageEvent

logger = logging.getLogger("ratelimit")


# A journal's bytes: frames of 4 bytes length, 4 bytes CRC-32 of the payload (both little-endian), and the payload. A
# crash can tear the end of a segment only: what failed to be written is cut off again, and a record counts as kept
# only after everything before it is on the disk. Any other bad frame is damage, and what is sound behind it is read.

_HEAD: Final = struct.Struct("<II")
HEAD_BYTES: Final = _HEAD.size
MAX_PAYLOAD: Final = 64 * 1024
"""More than any event takes: a length beyond it is damage."""
MAX_FRAME: Final = HEAD_BYTES + MAX_PAYLOAD

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(UsageEvent).decode
# Every payload begins so.
_BEGINNING: Final = b'{"id":'


def frame(event: UsageEvent) -> bytes:
    """The event as one frame."""
    payload = _encode(event)
    return _HEAD.pack(len(payload), crc32(payload)) + payload


def unframe(data: bytes) -> Iterator[tuple[UsageEvent, int]]:
    """The events of the whole and sound frames at the start of `data`, each with the offset at which it ends."""
    end = 0
    while (found := _frame_at(data, end)) is not None:
        yield found
        end = found[1]


def find_frame(data: bytes) -> int:
    """Where the first whole and sound frame begins; -1 where there is none.

    Nobody can plant one inside of an event: a length has a zero byte, and JSON has none.
    """
    at = data.find(_BEGINNING, HEAD_BYTES)
    while at >= 0 and _frame_at(data, at - HEAD_BYTES) is None:
        at = data.find(_BEGINNING, at + 1)
    return at - HEAD_BYTES if at >= 0 else -1


def is_cut_short(data: bytes) -> bool:
    """Whether a crash leaves such an end: a frame that goes on behind it, or zeros that were never written over."""
    if len(data) < HEAD_BYTES or not data.strip(b"\0"):
        return True
    length, _ = _HEAD.unpack_from(data)
    return bool(length <= MAX_PAYLOAD and HEAD_BYTES + length > len(data))


def _frame_at(data: bytes, at: int) -> tuple[UsageEvent, int] | None:
    """The event of the frame there, and the offset at which it ends."""
    if at + HEAD_BYTES > len(data):
        return None
    length, checksum = _HEAD.unpack_from(data, at)
    start, end = at + HEAD_BYTES, at + HEAD_BYTES + length
    if length > MAX_PAYLOAD or end > len(data) or crc32(payload := data[start:end]) != checksum:
        return None
    try:
        return _decode(payload), end
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


LOCK: Final = ".lock"
SEGMENT: Final = ".journal"
DAMAGED: Final = ".damaged"
_LOCK_ATTEMPTS: Final = 10
_READ_BYTES: Final = 128 * 1024


class Disk:
    """What is asked of the operating system. Tests put a full or a broken one in its place."""

    def write(self, fd: int, data: bytes) -> int:
        """Write some of the data; how much."""
        return os.write(fd, data)

    def sync(self, fd: int) -> None:
        """Return when everything written is on the disk."""
        os.fsync(fd)


class Found(NamedTuple):
    """What was read of a segment."""

    events: list[UsageEvent]
    end: int
    """Where to go on."""
    torn: bool = False
    """Without events: whether all the rest is an end that a crash has left; else it is damage."""


class Segment:
    """One file. `unwritten`, `done` and `damaged` belong to the event loop; everything else to the journal's thread."""

    __slots__ = ("damaged", "done", "fd", "lane", "path", "size", "unwritten")

    def __init__(self, path: Path, lane: Lane, *, fd: int = -1, size: int = 0) -> None:
        self.path = path
        self.lane = lane
        self.fd = fd
        self.size = size
        self.unwritten = 0
        """Its events that are not in the table yet, as far as they were read."""
        self.done = False
        """No more will be appended, nor read."""
        self.damaged = False
        """There are bytes in it that are no record, and may have been some."""

    def read(self, start: int, end: int, *, most: int) -> Found:
        """Up to `most` of the events between two offsets; none where what is at the first one is no record."""
        with self.path.open("rb") as file:
            data = _piece(file, start, end)
            found = list(islice(unframe(data), most))
            if found or start >= end:
                return Found([event for event, _ in found], start + found[-1][1] if found else end)
            sound = _next_frame(file, start + 1, end)
            return Found([], sound, torn=sound == end and is_cut_short(data))

    def delete(self) -> None:
        """Remove the file, unless it is damaged, and with the last one of a dead lane its lock."""
        self.close()
        if self.damaged:
            self.path.rename(self.path.with_name(self.path.name + DAMAGED))
        else:
            self.path.unlink(missing_ok=True)
        self.lane.forget(self)

    def close(self) -> None:
        """Append no more."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Lane:
    """A lock, and the segments under it."""

    def __init__(self, directory: Path, name: str, fd: int, disk: Disk) -> None:
        self.directory = directory
        self.name = name
        self.segments: list[Segment] = []
        self._fd = fd
        self._disk = disk
        self._made = 0
        self._releasing = False
        _locked.add(self)

    @classmethod
    def create(cls, directory: Path, disk: Disk) -> Lane:
        """A new lane for this process. Raises `OSError`."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for _ in range(_LOCK_ATTEMPTS):
            name = f"{os.getpid()}-{token_hex(8)}"
            fd = _lock(directory / (name + LOCK))
            if fd is not None:
                return cls(directory, name, fd, disk)
        raise OSError(errno.EAGAIN, f"could not lock a file in {directory}")

    @classmethod
    def adopt(cls, directory: Path, name: str, disk: Disk) -> Lane | None:
        """The lane of a process that has ended; None where it lives. Raises `OSError`."""
        fd = _lock(directory / (name + LOCK))
        if fd is None:
            return None
        lane = cls(directory, name, fd, disk)
        try:
            for path in sorted(directory.glob(f"{name}-*{SEGMENT}")):
                lane.segments.append(Segment(path, lane, size=path.stat().st_size))
        except OSError:
            lane.unlock()
            raise
        return lane

    def append(self, data: bytes, *, segment_bytes: int) -> tuple[Segment, int]:
        """Write and sync frames; the segment they went to, and their offset.

        All or none: after `OSError` the segment is as it was before.
        """
        segment = self.segments[-1] if self.segments else None
        if segment is None or segment.fd < 0 or segment.size >= segment_bytes:
            segment = self._next(segment)
        start = segment.size
        try:
            written = 0
            while written < len(data):
                written += self._disk.write(segment.fd, data[written:])
            self._disk.sync(segment.fd)
        except OSError:
            self._cut(segment)
            raise
        segment.size += len(data)
        return segment, start

    def forget(self, segment: Segment) -> None:
        """A segment was deleted."""
        self.segments.remove(segment)
        if self._releasing and not self.segments:
            self.release()

    def release(self) -> None:
        """Let others adopt what is left; where nothing is, remove the lock."""
        for segment in self.segments:
            segment.close()
        try:
            if not self.segments:
                (self.directory / (self.name + LOCK)).unlink(missing_ok=True)
        except OSError as error:
            logger.warning("cannot remove the journal's %s: %s", self.name + LOCK, error)
        finally:
            self.unlock()

    def unlock(self) -> None:
        """Let others have it as it is."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def release_when_empty(self) -> None:
        """The same, once every segment is deleted."""
        self._releasing = True
        if not self.segments:
            self.release()

    def _next(self, last: Segment | None) -> Segment:
        if last is not None:
            last.close()
        self._made += 1
        path = self.directory / f"{self.name}-{self._made:06}{SEGMENT}"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        segment = Segment(path, self, fd=fd)
        self.segments.append(segment)
        directory = os.open(self.directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._disk.sync(directory)  # or the file itself may be missing after a power cut
        except OSError:
            segment.delete()
            raise
        finally:
            os.close(directory)
        return segment

    def _cut(self, segment: Segment) -> None:
        """Take back what was half written, and append elsewhere from now on: a failed sync may not be repeated."""
        if segment.size == 0:
            segment.delete()
            return
        try:
            os.ftruncate(segment.fd, segment.size)
        finally:
            segment.close()


def dead_lanes(directory: Path, disk: Disk) -> tuple[list[Lane], dict[str, OSError]]:
    """Adopts the lanes whose processes have ended; also, by name, those that could not be, and why."""
    lanes: list[Lane] = []
    failures: dict[str, OSError] = {}
    try:
        names = {path.name.removesuffix(LOCK) for path in directory.glob(f"*{LOCK}")}
        names |= {path.name.rpartition("-")[0] for path in directory.glob(f"*-*{SEGMENT}")}
    except OSError as error:
        return [], {"*": error}
    for name in sorted(names):
        try:
            lane = Lane.adopt(directory, name, disk)
        except OSError as error:
            failures[name] = error
        else:
            lanes += [] if lane is None else [lane]
    return lanes, failures


def _piece(file: BinaryIO, start: int, end: int) -> bytes:
    """As much of a file as is read at once: any frame that begins there is whole in it, unless `end` cuts it."""
    file.seek(start)
    return file.read(min(end - start, _READ_BYTES))


def _next_frame(file: BinaryIO, start: int, end: int) -> int:
    """Where the next sound frame begins; `end` where none does."""
    while start < end:
        found = find_frame(_piece(file, start, end))
        if found >= 0:
            return start + found
        start += _READ_BYTES - MAX_FRAME
    return end


def _lock(path: Path) -> int | None:
    """The descriptor of a lock that is ours now; None where somebody else holds it, or has just removed it."""
    try:
        import fcntl  # only where there is a journal: Windows has neither
    except ImportError as error:
        raise OSError(errno.ENOTSUP, "the journal needs flock, which this system lacks") from error
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_nlink:
            return fd
    except BlockingIOError:
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


# A lock lives until every process that has inherited it is gone: a forked child, which does not write, lets go at once.
_locked: Final[WeakSet[Lane]] = WeakSet()


def _unlock_in_child() -> None:
    for lane in list(_locked):
        lane.unlock()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_unlock_in_child)
