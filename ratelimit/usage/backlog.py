"""`Backlog`: what only the disk holds, in line to be read back: what was spilled, and what dead processes left."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from ratelimit.event import UsageEvent
from ratelimit.usage.holdings import Holdings
from ratelimit.usage.segments import Disk, Lane, Segment, dead_lanes
from ratelimit.usage.stats import UsageStats

logger = logging.getLogger("ratelimit")


@dataclass(slots=True)
class _Stretch:
    """Bytes of a segment. Those of a dead process are a whole segment."""

    segment: Segment
    start: int
    end: int
    adopted: bool


class Backlog:
    """Belongs to the event loop; reads in the journal's thread."""

    def __init__(self, thread: Executor, holdings: Holdings, stats: UsageStats) -> None:
        self._thread = thread
        self._holdings = holdings
        self._stats = stats
        self._line: deque[_Stretch] = deque()
        self._lanes: list[Lane] = []
        self.queued = 0
        """Bytes that ever were in line."""
        self.passed = 0
        """Of these, those that were read, or skipped."""
        self.arrived = asyncio.Event()

    def __bool__(self) -> bool:
        return bool(self._line)

    def spilled(self, segment: Segment, start: int, end: int) -> None:
        """An event that is only there."""
        self.queued += end - start
        self.arrived.set()
        last = self._line[-1] if self._line else None
        if last is not None and last.segment is segment and last.end == start:
            last.end = end
        else:
            self._line.append(_Stretch(segment, start, end, adopted=False))

    async def adopt(self, directory: Path, disk: Disk) -> None:
        """Put what dead processes left in line. Raises `OSError`."""
        loop = asyncio.get_running_loop()
        for lane in await loop.run_in_executor(self._thread, lambda: list(dead_lanes(directory, disk))):
            self._lanes = [*(former for former in self._lanes if former.segments), lane]
            for segment in list(lane.segments):
                self._stats.journal_bytes += segment.size
                self.queued += segment.size
                self._line.append(_Stretch(segment, 0, segment.size, adopted=True))
                self.arrived.set()
            self._thread.submit(lane.release_when_empty)

    async def read(self, most: int) -> list[UsageEvent]:
        """Up to `most` of the events that are next in line."""
        stretch = self._line[0]
        segment, start, end = stretch.segment, stretch.start, stretch.end
        loop = asyncio.get_running_loop()
        try:
            found = (await loop.run_in_executor(self._thread, segment.read, start, end))[:most]
        except OSError as error:
            logger.warning("cannot read %s, it is left for the next start: %s", segment.path.name, error)
            self._pass(stretch, end)
            return []
        for event, _ in found:
            self._holdings.hold(event, segment, counted=not stretch.adopted)
        if stretch.adopted:
            self._stats.replayed += len(found)
        if not found and start < end:
            self._stats.torn += 1
            logger.warning("%s is torn: its last %d bytes are no record", segment.path.name, end - start)
        self._pass(stretch, found[-1][1] if found else end)
        if stretch.adopted and stretch.start == stretch.end:
            self._holdings.done(segment)
        return [event for event, _ in found]

    def release(self) -> None:
        """Let others adopt what is still in line. Blocks: for the journal's thread."""
        for lane in self._lanes:
            lane.release()

    def _pass(self, stretch: _Stretch, to: int) -> None:
        self.passed += to - stretch.start
        stretch.start = to
        if stretch.start >= stretch.end:
            self._line.popleft()
