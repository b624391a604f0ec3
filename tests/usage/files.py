"""What the tests of files share: a store of their own, events of today, and the ways a long work may be cut short."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ratelimit.clock import DAY
from ratelimit.event import UsageEvent
from ratelimit.store import EventStore, MemoryStore, Page, Part, TableStore
from ratelimit.store.memory import MemoryScans
from ratelimit.testing import FakeClock
from ratelimit.usage.export import ExportCheckpoint, ExportQuery, File, export_events
from ratelimit.usage.formats import Csv, Jsonl

# An engine may delete what has expired, so it is today; at noon, so that no test crosses midnight.
NOON = time.time_ns() // 1000 // DAY * DAY + DAY // 2
CLOCK = FakeClock(NOON / 1_000_000)
ENCODERS: dict[str, type[Jsonl] | type[Csv]] = {"jsonl": Jsonl, "csv": Csv}


def event(user: str = "alice", action: str = "hint", **parts: Any) -> UsageEvent:
    return UsageEvent.of(user, action, **{"now": NOON, **parts})


def many(count: int, *, users: int = 7) -> list[UsageEvent]:
    """Events of the last days, of all kinds."""
    return [
        event(
            f"user-{number % users}",
            ("hint", "solve", "a#b")[number % 3],
            at_ms=NOON // 1000 - number * 997,
            allowed=number % 5 != 0,
            cost=number % 4,
            status=(None, 200, 429)[number % 3],
            resource=f"problem-{number}",
        )
        for number in range(count)
    ]


async def fill(events: EventStore, made: Sequence[UsageEvent]) -> None:
    for start in range(0, len(made), 25):
        assert not await events.put(made[start : start + 25])


async def to_file(
    store: TableStore, path: Path, format: str = "jsonl", *, resume: bool = False, **asked: Any
) -> ExportCheckpoint:
    sink = File(path, ENCODERS[format](), resume=resume)
    return await export_events(store, ExportQuery(store="s", format=format, **asked), sink, clock=CLOCK)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def rest_of(path: Path) -> list[str]:
    """What lies beside the file."""
    return sorted(one.name for one in path.parent.iterdir() if one != path)


class Interrupted(BaseException):
    """As ctrl-C would."""


class InterruptedScans(MemoryScans):
    """Answers so many pages, and then the process is told to stop."""

    pages = 10**9

    async def events(self, **query: Any) -> Page[UsageEvent]:
        self.pages -= 1
        if self.pages < 0:
            raise Interrupted
        return await super().events(**query)


class InterruptedStore(MemoryStore):
    """A store whose scans are interrupted."""

    def __init__(self) -> None:
        super().__init__()
        self.scanner = InterruptedScans(self.events, lambda: ())

    @property
    def scans(self) -> MemoryScans:
        return self.scanner


class EndlessScans:
    """Events that are made as they are asked for, and nowhere kept."""

    def __init__(self, pages: int, size: int = 1000) -> None:
        self.left = pages
        self.size = size

    async def events(self, *, cursor: str | None = None, part: Part | None = None, **_: int) -> Page[UsageEvent]:
        first = int(cursor or 0)
        made = tuple(
            event(f"user-{number % 1000}", at_ms=NOON // 1000 - number % 10**6, metadata={"n": number})
            for number in range(first, first + self.size)
        )
        self.left -= 1
        return Page(made, str(first + self.size) if self.left else None)


KILLED = """
import asyncio, os, signal, sys
from ratelimit import MemoryStore
from ratelimit.usage import UsageLog

class Nowhere(MemoryStore):
    pass

async def main():
    store = Nowhere()
    async def never(events):
        await asyncio.Event().wait()
    store.events.put = never
    async with UsageLog(store, durability="journal", journal_dir=sys.argv[1]) as usage:
        for number in range(20):
            await usage.record("alice", "hint")
            await usage.record("bob", "hint")
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def killed(directory: Path) -> None:
    """What a dead process leaves: forty events, twenty of them Alice's."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(directory)], timeout=240, check=False)
    assert done.returncode == -signal.SIGKILL
