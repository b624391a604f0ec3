"""The journal's files. Each process has a lock of its own, that dies with it, and numbered segments under it.

    <name>.lock              held with `flock` as long as the process lives
    <name>-000001.journal    frames, appended only
    ….journal.damaged        one that was not sound in the middle: nobody reads it again, and nobody deletes it
    erased                   which users were erased: what still waits of them is not to be written any more

Whoever gets the lock of another process may adopt its segments: the process that wrote them is dead. The directory has
to be on a local file system. Everything here blocks, and runs in the journal's thread.

A segment is frames of 4 bytes length, 4 bytes CRC-32 of the payload (both little-endian), and the payload. A crash can
tear the end of a segment only: what failed to be written is cut off again, and a record counts as kept only after
everything before it is on the disk. Any other bad frame is damage, and what is sound behind it is read.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from secrets import token_hex
from typing import Any, BinaryIO, Final, NamedTuple
from weakref import WeakSet
from zlib import crc32

import msgspec

from ratelimit.blocking import importing
from ratelimit.clock import DAY
from ratelimit.event import RETENTION_DAYS, UsageEvent

logger = logging.getLogger("ratelimit")


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
    payload = _encode(event)
    return _HEAD.pack(len(payload), crc32(payload)) + payload


def unframe(data: bytes) -> Iterator[tuple[UsageEvent, int]]:
    """Yield the events of the whole and sound frames at the start of `data`, each with the offset at which it ends."""
    end = 0
    while (found := _frame_at(data, end)) is not None:
        yield found
        end = found[1]


def find_frame(data: bytes) -> int:
    """Return where the first whole and sound frame begins; -1 where there is none.

    Nobody can plant one inside of an event: a length has a zero byte, and JSON has none.
    """
    at = data.find(_BEGINNING, HEAD_BYTES)
    while at >= 0 and _frame_at(data, at - HEAD_BYTES) is None:
        at = data.find(_BEGINNING, at + 1)
    return at - HEAD_BYTES if at >= 0 else -1


def is_cut_short(data: bytes) -> bool:
    """Return whether a crash leaves such an end: a frame that goes on behind it, or zeros never written over."""
    if len(data) < HEAD_BYTES or not data.strip(b"\0"):
        return True
    length, _ = _HEAD.unpack_from(data)
    return bool(length <= MAX_PAYLOAD and HEAD_BYTES + length > len(data))


def _frame_at(data: bytes, at: int) -> tuple[UsageEvent, int] | None:
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
_ERASURES_KEPT_MS: Final = (RETENTION_DAYS + 1) * DAY // 1000


class SegmentRead(NamedTuple):
    """What was read of a segment."""

    events: list[UsageEvent]
    end: int
    """Where to go on."""
    torn: bool = False
    """Without events: whether all the rest is an end that a crash has left; else it is damage."""


@dataclass(slots=True, eq=False)
class Segment:
    """One file of frames. `unwritten`, `done`, `damaged` are the event loop's, all else the journal's thread's."""

    path: Path
    lock: JournalLock
    fd: int = -1
    size: int = 0
    unwritten: int = 0
    """Its events that are not in the table yet, as far as they were read."""
    done: bool = False
    """No more will be appended, nor read."""
    damaged: bool = False
    """There are bytes in it that are no record, and may have been some."""

    def read(self, start: int, end: int, *, most: int) -> SegmentRead:
        """Return up to `most` of the events between two offsets; none where what is at the first one is no record."""
        with self.path.open("rb") as file:
            data = _piece(file, start, end)
            found = list(islice(unframe(data), most))
            if found or start >= end:
                return SegmentRead([event for event, _ in found], start + found[-1][1] if found else end)
            sound = _next_frame(file, start + 1, end)
            return SegmentRead([], sound, torn=sound == end and is_cut_short(data))

    def delete(self) -> None:
        """Remove the file, unless it is damaged, and with the last one of a dead process its lock."""
        self.close()
        if self.damaged:
            self.path.rename(self.path.with_name(self.path.name + DAMAGED))
        else:
            self.path.unlink(missing_ok=True)
        self.lock.forget(self)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class JournalLock:
    """A lock that dies with its process, and the segments under it."""

    def __init__(self, directory: Path, name: str, fd: int) -> None:
        self.directory = directory
        self.name = name
        self.segments: list[Segment] = []
        self._fd = fd
        self._made = 0
        self._releasing = False
        _locked.add(self)

    @classmethod
    def create(cls, directory: Path) -> JournalLock:
        """Lock a new name for this process. Raise `OSError`."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for _ in range(_LOCK_ATTEMPTS):
            name = f"{os.getpid()}-{token_hex(8)}"
            fd = _try_lock(directory / (name + LOCK))
            if fd is not None:
                return cls(directory, name, fd)
        raise OSError(errno.EAGAIN, f"could not lock a file in {directory}")

    @classmethod
    def adopt(cls, directory: Path, name: str) -> JournalLock | None:
        """Take over from a process that has ended; return None where it lives. Raise `OSError`."""
        fd = _try_lock(directory / (name + LOCK))
        if fd is None:
            return None
        lock = cls(directory, name, fd)
        try:
            for path in sorted(directory.glob(f"{name}-*{SEGMENT}")):
                lock.segments.append(Segment(path, lock, size=path.stat().st_size))
        except OSError:
            lock.unlock()
            raise
        return lock

    def append(self, data: bytes, *, segment_bytes: int) -> tuple[Segment, int]:
        """Write and sync frames; return the segment they went to, and their offset.

        All or none: after `OSError` the segment is as it was before.
        """
        segment = self.segments[-1] if self.segments else None
        if segment is None or segment.fd < 0 or segment.size >= segment_bytes:
            segment = self._next(segment)
        start = segment.size
        try:
            written = 0
            while written < len(data):
                written += os.write(segment.fd, data[written:])
            os.fsync(segment.fd)
        except OSError:
            self._cut(segment)
            raise
        segment.size += len(data)
        return segment, start

    def forget(self, segment: Segment) -> None:
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
            os.fsync(directory)  # or the file itself may be missing after a power cut
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


def adopt_dead(directory: Path) -> tuple[list[JournalLock], dict[str, OSError]]:
    """Take over from all processes that have ended; return also, by name, what could not be taken over, and why."""
    locks: list[JournalLock] = []
    failures: dict[str, OSError] = {}
    try:
        names = {path.name.removesuffix(LOCK) for path in directory.glob(f"*{LOCK}")}
        names |= {path.name.rpartition("-")[0] for path in directory.glob(f"*-*{SEGMENT}")}
    except OSError as error:
        return [], {"*": error}
    for name in sorted(names):
        try:
            lock = JournalLock.adopt(directory, name)
        except OSError as error:
            failures[name] = error
        else:
            locks += [] if lock is None else [lock]
    return locks, failures


def _piece(file: BinaryIO, start: int, end: int) -> bytes:
    """Read so much that any frame that begins there is whole in it, unless `end` cuts it."""
    file.seek(start)
    return file.read(min(end - start, _READ_BYTES))


def _next_frame(file: BinaryIO, start: int, end: int) -> int:
    while start < end:
        found = find_frame(_piece(file, start, end))
        if found >= 0:
            return start + found
        start += _READ_BYTES - MAX_FRAME
    return end


def _try_lock(path: Path) -> int | None:
    """Return the descriptor of a lock that is ours; None where somebody else holds it, or has just removed it."""
    fcntl = _fcntl()
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


def _fcntl() -> Any:
    try:
        with importing:
            import fcntl  # only where there is a journal: Windows lacks it
    except ImportError as error:
        raise OSError(errno.ENOTSUP, "the journal needs flock, which this system lacks") from error
    return fcntl


# A lock lives until every process that has inherited it is gone: a forked child, which does not write, lets go at once.
_locked: Final[WeakSet[JournalLock]] = WeakSet()


def _unlock_in_child() -> None:
    for lock in list(_locked):
        lock.unlock()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_unlock_in_child)


class Erasures:
    """Who was erased, by any process that shares the journal's directory. `add` and `load` touch the disk.

    A segment is kept until all that is in it is in the table, so that a crash repeats some of what was written: that
    must not bring back what was erased meanwhile.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / "erased"
        self._seen: tuple[int, int] | None = None
        self._lines: list[_Erasure] = []
        self._erased: dict[str, int] = {}

    def add(self, users: Iterable[str], *, at: int) -> None:
        """Have no event of these users written any more that happened until then. Raise `OSError`."""
        fcntl = _fcntl()
        lines = [_Erasure(salt := token_hex(8), _digest(salt, user), at) for user in users]
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # What is older than any event that is still written need not be known.
            kept = [line for line in _erasures_in(file) if line.at > at - _ERASURES_KEPT_MS]
            file.seek(0)
            file.truncate()
            file.write(msgspec.json.Encoder().encode_lines([*kept, *lines]))
            file.flush()
            os.fsync(file.fileno())

    def load(self) -> None:
        """Look whether somebody has added to it. Raise `OSError`."""
        fcntl = _fcntl()
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            return
        if (seen := (stat.st_mtime_ns, stat.st_size)) == self._seen:
            return
        with self._path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            self._lines = list(_erasures_in(file))
        self._seen = seen
        self._erased.clear()

    def covers(self, event: UsageEvent) -> bool:
        if not self._lines:
            return False
        until = self._erased.get(event.user)
        if until is None:
            mine = [line.at for line in self._lines if line.digest == _digest(line.salt, event.user)]
            until = self._erased[event.user] = max(mine, default=-1)
        return event.at_ms <= until


class _Erasure(msgspec.Struct, frozen=True):
    """A line of the file `erased`: a user's digest under a salt, and when they were erased."""

    salt: str
    digest: str
    at: int  # milliseconds


def damaged_files_of(directory: Path, users: Iterable[str]) -> list[str]:
    """Return the damaged segments, which nobody reads again, that name one of these users."""
    needles = [msgspec.json.encode(user) for user in users]
    return [
        str(path)
        for path in sorted(directory.glob(f"*{DAMAGED}"))
        if any(needle in path.read_bytes() for needle in needles)
    ]


def _erasures_in(file: BinaryIO) -> Iterator[_Erasure]:
    for line in file:
        try:
            yield msgspec.json.decode(line, type=_Erasure)
        except msgspec.DecodeError:  # cut short by a crash: whoever wrote it was not told that it is done
            continue


def _digest(salt: str, user: str) -> str:
    return blake2b(user.encode(), salt=bytes.fromhex(salt), digest_size=16).hexdigest()
