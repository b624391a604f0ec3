"""`Backlog`: what only the disk holds, in line to be read back: what was spilled, and what dead processes left."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from ratelimit.event import UsageEvent
from ratelimit.usage.erasures import Erasures
from ratelimit.usage.holdings import Holdings
from ratelimit.usage.segments import DAMAGED, Disk, Found, Lane, Segment, dead_lanes
from ratelimit.usage.stats import UsageStats

logger = logging.getLogger("ratelimit")


@dataclass(slots=True)
class _Stretch:
    """Bytes of a segment. Those of a dead process are a whole segment."""

    segment: Segment
    start: int
    end: int
    adopted: bool
    failed: bool = False


class Backlog:
    """Belongs to the event loop; reads in the journal's thread."""

    def __init__(self, thread: Executor, holdings: Holdings, stats: UsageStats, erasures: Erasures) -> None:
        self.erasures = erasures
        """As they were when the last events were read."""
        self._thread = thread
        self._holdings = holdings
        self._stats = stats
        self._line: deque[_Stretch] = deque()
        self._aside: list[_Stretch] = []
        self._lanes: list[Lane] = []
        self._failures: dict[str, OSError] = {}
        self.queued = 0
        """Bytes that ever were in line."""
        self.passed = 0
        """Of these, those that were read, or skipped."""
        self.arrived = asyncio.Event()

    def __bool__(self) -> bool:
        return bool(self._line)

    def spilled(self, segment: Segment, start: int, end: int) -> None:
        """An event that is only there."""
        last = self._line[-1] if self._line else None
        if last is not None and last.segment is segment and last.end == start:
            last.end = end
            self.queued += end - start
        else:
            self._enqueue(_Stretch(segment, start, end, adopted=False))

    async def adopt(self, directory: Path, disk: Disk) -> None:
        """Put in line what dead processes left, and once more what could not be read."""
        loop = asyncio.get_running_loop()
        lanes, failures = await loop.run_in_executor(self._thread, self._take_over, directory, disk)
        for name in failures.keys() - self._failures:
            logger.warning("cannot look into %s/%s, it is tried again: %s", directory, name, failures[name])
        self._failures = failures
        aside, self._aside = self._aside, []
        for stretch in aside:
            self._enqueue(stretch)
        for lane in lanes:
            for segment in list(lane.segments):
                self._holdings.bytes += segment.size
                self._enqueue(_Stretch(segment, 0, segment.size, adopted=True))

    async def read(self, most: int) -> list[UsageEvent]:
        """Up to `most` of the events that are next in line."""
        stretch = self._line[0]
        segment, start, end = stretch.segment, stretch.start, stretch.end

        def read_on() -> Found:
            self.erasures.load()
            return segment.read(start, end, most=most)

        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(self._thread, read_on)
        except OSError as error:
            self._put_aside(stretch, end, error)
            return []
        for event in found.events:
            self._holdings.hold(event, segment, counted=not stretch.adopted)
        if stretch.adopted:
            self._stats.replayed += len(found.events)
        if not found.events and start < end:
            self._skip(stretch, found)
        self._pass(stretch, found.end)
        if stretch.adopted and stretch.start == stretch.end:
            self._holdings.done(segment)
        return found.events

    def release(self) -> None:
        """Let others adopt what is still in line. Blocks: for the journal's thread."""
        for lane in self._lanes:
            lane.release()

    def _take_over(self, directory: Path, disk: Disk) -> tuple[list[Lane], dict[str, OSError]]:
        """In the thread: so `release` knows every lane that is ours, even if nobody waits for this answer any more."""
        lanes, failures = dead_lanes(directory, disk)
        for lane in lanes:
            lane.release_when_empty()
        self._lanes = [*(former for former in self._lanes if former.segments), *lanes]
        return lanes, failures

    def _enqueue(self, stretch: _Stretch) -> None:
        self._line.append(stretch)
        self.queued += stretch.end - stretch.start
        self.arrived.set()

    def _skip(self, stretch: _Stretch, found: Found) -> None:
        """What comes next is no record: the end of a segment whose writer has died, or damage."""
        segment, start = stretch.segment, stretch.start
        if found.torn and stretch.adopted:
            self._stats.torn += 1
            logger.warning("%s is torn: its last %d bytes are no record", segment.path.name, found.end - start)
        elif not segment.damaged:
            segment.damaged = True
            self._stats.damaged += 1
            logger.error(
                "%s is damaged at byte %d, records may be lost: what is sound is read, and the file kept as %s",
                segment.path.name, start, segment.path.name + DAMAGED,
            )  # fmt: skip

    def _put_aside(self, stretch: _Stretch, end: int, error: OSError) -> None:
        """Until the next look for what dead processes left: it is not to hold up the others."""
        name = stretch.segment.path.name
        if not stretch.failed:
            logger.warning("cannot read %s, it is tried again: %s", name, error)
        self._aside.append(_Stretch(stretch.segment, stretch.start, end, stretch.adopted, failed=True))
        self._pass(stretch, end)

    def _pass(self, stretch: _Stretch, to: int) -> None:
        self.passed += to - stretch.start
        stretch.start = to
        if stretch.start >= stretch.end:
            self._line.popleft()
