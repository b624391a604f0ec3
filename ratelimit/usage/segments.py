"""The journal's files. Each process has a lane of its own: a lock that dies with it, and numbered segments.

    <lane>.lock              held with `flock` as long as the process lives
    <lane>-000001.journal    frames, appended only

Whoever gets the lock of another lane may adopt its segments: the process that wrote them is dead. The directory has
to be on a local file system. Everything here blocks, and runs in the journal's thread.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex
from typing import Final

from ratelimit.event import UsageEvent
from ratelimit.usage.framing import HEAD_BYTES, MAX_PAYLOAD, unframe

LOCK: Final = ".lock"
SEGMENT: Final = ".journal"
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


class Segment:
    """One file. `unwritten` and `done` belong to the event loop; everything else to the journal's thread."""

    __slots__ = ("done", "fd", "lane", "path", "size", "unwritten")

    def __init__(self, path: Path, lane: Lane, *, fd: int = -1, size: int = 0) -> None:
        self.path = path
        self.lane = lane
        self.fd = fd
        self.size = size
        self.unwritten = 0
        """Its events that are not in the table yet, as far as they were read."""
        self.done = False
        """No more will be appended, nor read."""

    def read(self, start: int, end: int) -> list[tuple[UsageEvent, int]]:
        """Some of the events between two offsets, each with the offset at which it ends; none where it is torn."""
        with self.path.open("rb") as file:
            file.seek(start)
            data = file.read(min(end - start, max(_READ_BYTES, HEAD_BYTES + MAX_PAYLOAD)))
        return [(event, start + offset) for event, offset in unframe(data)]

    def delete(self) -> None:
        """Remove the file, and with the last one of a dead lane its lock."""
        self.close()
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
        for path in sorted(directory.glob(f"{name}-*{SEGMENT}")):
            segment = Segment(path, lane, size=path.stat().st_size)
            lane.segments.append(segment)
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
        if not self.segments:
            (self.directory / (self.name + LOCK)).unlink(missing_ok=True)
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


def dead_lanes(directory: Path, disk: Disk) -> Iterator[Lane]:
    """Adopts, one after the other, the lanes whose processes have ended."""
    names = {path.name.removesuffix(LOCK) for path in directory.glob(f"*{LOCK}")}
    names |= {path.name.rpartition("-")[0] for path in directory.glob(f"*-*{SEGMENT}")}
    for name in sorted(names):
        lane = Lane.adopt(directory, name, disk)
        if lane is not None:
            yield lane


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
