"""`Erasures`: who was erased, for those who read a journal. What waited in it then is not to come back.

    DIR/erased    a line each, in JSON: a salt, the user's digest under it, and when it was

A segment is kept until all that is in it is in the table, so that a crash repeats some of what was written: that must
not bring back what was erased meanwhile, by whomever.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO, Final

import msgspec

from ratelimit.clock import DAY
from ratelimit.event import RETENTION_DAYS, UsageEvent
from ratelimit.usage.segments import DAMAGED

ERASED: Final = "erased"
_KEPT_MS: Final = (RETENTION_DAYS + 1) * DAY // 1000


class _Line(msgspec.Struct, frozen=True):
    salt: str
    digest: str
    at: int
    """Milliseconds."""


class Erasures:
    """Of one journal's directory. `add` and `load` touch the disk; `covers` does not."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / ERASED
        self._seen: tuple[int, int] | None = None
        self._lines: list[_Line] = []
        self._erased: dict[str, int] = {}

    def add(self, users: Iterable[str], *, at: int) -> None:
        """Events of these users that happened until then are not to be written any more. Raises `OSError`."""
        lines = [_Line(salt := token_hex(8), _digest(salt, user), at) for user in users]
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b") as file:
            _lock(file)
            # What is older than any event that is still written need not be known.
            kept = [line for line in _read(file) if line.at > at - _KEPT_MS]
            file.seek(0)
            file.truncate()
            file.write(msgspec.json.Encoder().encode_lines([*kept, *lines]))
            file.flush()
            os.fsync(file.fileno())

    def load(self) -> None:
        """Look whether somebody has added to it. Raises `OSError`."""
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            return
        if (seen := (stat.st_mtime_ns, stat.st_size)) == self._seen:
            return
        with self._path.open("rb") as file:
            _lock(file, shared=True)
            self._lines = list(_read(file))
        self._seen = seen
        self._erased.clear()

    def covers(self, event: UsageEvent) -> bool:
        """Whether it is of somebody who was erased after it."""
        if not self._lines:
            return False
        until = self._erased.get(event.user)
        if until is None:
            mine = [line.at for line in self._lines if line.digest == _digest(line.salt, event.user)]
            until = self._erased[event.user] = max(mine, default=-1)
        return event.at <= until


def damaged_files_of(directory: Path, users: Iterable[str]) -> list[str]:
    """The damaged segments, which nobody reads again, in which one of these users stands."""
    needles = [msgspec.json.encode(user) for user in users]
    return [
        str(path)
        for path in sorted(directory.glob(f"*{DAMAGED}"))
        if any(needle in path.read_bytes() for needle in needles)
    ]


def _read(file: BinaryIO) -> Iterator[_Line]:
    for line in file:
        try:
            yield msgspec.json.decode(line, type=_Line)
        except msgspec.DecodeError:  # cut short by a crash: whoever wrote it was not told that it is done
            continue


def _digest(salt: str, user: str) -> str:
    return blake2b(user.encode(), salt=bytes.fromhex(salt), digest_size=16).hexdigest()


def _lock(file: BinaryIO, *, shared: bool = False) -> None:
    import fcntl  # as in `segments`: only where there is a journal

    fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
