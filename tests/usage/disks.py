"""Disks that fail or are slow: each takes the place of `os`, as the journal's files see it."""

from __future__ import annotations

import errno
import os
import threading
import time
from typing import Any

import pytest

from ratelimit.usage import segments


class Disk:
    """`Disk().install(monkeypatch)`: from now on it is what journals write to."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(segments, "os", self)


class FullDisk(Disk):
    """Takes `room` bytes, and then no more; half of a write may go through."""

    def __init__(self, room: int) -> None:
        self.room = room

    def write(self, fd: int, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = os.write(fd, data[: self.room])
        self.room -= written
        return written


class BrokenDisk(Disk):
    """Does not sync."""

    broken = True

    def fsync(self, fd: int) -> None:
        if self.broken:
            raise OSError(errno.EIO, "Input/output error")


class CountingDisk(Disk):
    """Counts the syncs."""

    syncs = 0

    def fsync(self, fd: int) -> None:
        self.syncs += 1
        os.fsync(fd)


class SlowDisk(Disk):
    """Takes three milliseconds."""

    def fsync(self, fd: int) -> None:
        time.sleep(0.003)
        os.fsync(fd)


class HungDisk(Disk):
    """Does not come back until it is told to."""

    def __init__(self) -> None:
        self.hangs = threading.Event()
        self.goes_on = threading.Event()

    def fsync(self, fd: int) -> None:
        self.hangs.set()
        self.goes_on.wait(60)
        os.fsync(fd)
