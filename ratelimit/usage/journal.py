"""`Journal`: events on the local disk before anybody is told that they are kept.

A record counts as kept when an `fsync` that began after it was appended has returned; all that come while one runs
share the next (group commit). A segment is deleted when the table has every event in it.

A disk that is full, or fails, does not fail requests: the events stay in memory only, `unjournaled` counts them, one
line in the log says so, and each following group tries the disk again.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

from ratelimit.event import UsageEvent
from ratelimit.usage.backlog import Backlog
from ratelimit.usage.framing import frame
from ratelimit.usage.holdings import Holdings
from ratelimit.usage.segments import Disk, Lane, Segment
from ratelimit.usage.stats import UsageStats
from ratelimit.usage.writer import Writer

logger = logging.getLogger("ratelimit")

_MOST_WAITING: Final = 8 * 1024 * 1024


class Journal:
    """One per log and event loop; its files are touched in a thread of its own. Feeds the `writer` what is kept."""

    def __init__(
        self,
        directory: Path,
        stats: UsageStats,
        writer: Writer,
        *,
        segment_bytes: int,
        journal_bytes: int,
        disk: Disk,
    ) -> None:
        self._directory = directory
        self._stats = stats
        self._writer = writer
        self._segment_bytes = segment_bytes
        self._journal_bytes = journal_bytes
        self._disk = disk
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ratelimit-journal")
        self.holdings = Holdings(self._thread, stats)
        self.backlog = Backlog(self._thread, self.holdings, stats)
        self._lane: Lane | None = None
        self._active: Segment | None = None
        self._group: list[_Append] | None = None
        self._committing: asyncio.Task[None] | None = None
        self._waiting_bytes = 0
        self._failing = False
        self.waiting = 0
        """Events on their way to the disk that are to be written from memory."""

    @property
    def full(self) -> bool:
        """Whether the disk is so far behind that no more should be appended."""
        return self._waiting_bytes >= _MOST_WAITING

    def append(self, event: UsageEvent, *, spill: bool) -> asyncio.Future[bool]:
        """Done when the event is on the disk or, as the second best, in memory; False where it is lost.

        With `spill` the disk has the only copy, which waits in the `backlog`.
        """
        loop = asyncio.get_running_loop()
        if self._group is None:
            self._group = []
        self._group.append(one := _Append(event, data := frame(event), spill, loop.create_future()))
        self._waiting_bytes += len(data)
        self.waiting += not spill
        if self._committing is None:
            self._committing = loop.create_task(self._commit())
        return one.done

    async def settled(self) -> None:
        """Returns when nothing is on its way to the disk."""
        while (committing := self._committing) is not None:
            await asyncio.wait([committing])

    async def open(self) -> None:
        """Make the directory, and this process's lane in it. Raises `OSError`."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._own_lane)

    async def adopt(self) -> None:
        """Put what dead processes left into the backlog; a disk that fails is only reported."""
        try:
            await self.backlog.adopt(self._directory, self._disk)
        except OSError as error:
            self._report(error)

    async def close(self) -> None:
        """Delete what the table has, and leave everything else to the next start."""
        await self.settled()
        if self._active is not None:
            self.holdings.done(self._active)
        await asyncio.get_running_loop().run_in_executor(self._thread, self._release)
        self._thread.shutdown()

    def _release(self) -> None:
        self.backlog.release()
        if self._lane is not None:
            self._lane.release()

    async def _commit(self) -> None:
        """Group after group, until none is left."""
        loop = asyncio.get_running_loop()
        while (group := self._group) is not None:
            self._group = None
            data = b"".join([one.data for one in group])
            try:
                segment, start = await loop.run_in_executor(self._thread, self._append, data)
            except OSError as error:
                self._failed(group, error)
            else:
                self._succeeded(group, segment, start)
            self._waiting_bytes -= len(data)
        self._committing = None

    def _append(self, data: bytes) -> tuple[Segment, int]:
        """In the thread."""
        if self._stats.journal_bytes + len(data) > self._journal_bytes:
            raise OSError(errno.EDQUOT, f"the journal may take {self._journal_bytes} bytes, and does")
        return self._own_lane().append(data, segment_bytes=self._segment_bytes)

    def _own_lane(self) -> Lane:
        if self._lane is None:
            self._lane = Lane.create(self._directory, self._disk)
        return self._lane

    def _succeeded(self, group: list[_Append], segment: Segment, start: int) -> None:
        if self._failing:
            self._failing = False
            logger.warning("the journal takes usage events again")
        former, self._active = self._active, segment
        for one in group:
            end = start + len(one.data)
            if one.spill:
                segment.unwritten += 1
                self.backlog.spilled(segment, start, end)
            else:
                self.holdings.hold(one.event, segment)
                self.waiting -= 1
                self._writer.add(one.event)
            self._stats.spilled += one.spill
            self._stats.journal_bytes += len(one.data)
            one.resolve(kept=True)
            start = end
        if former is not None and former is not segment:
            self.holdings.done(former)

    def _failed(self, group: list[_Append], error: OSError) -> None:
        """Memory is the second best, as far as there is room for those that the disk was to hold alone."""
        self._report(error)
        for one in group:
            self.waiting -= not one.spill
            kept = not one.spill or self._writer.room > 0
            if kept:
                self._writer.add(one.event)
                self._stats.unjournaled += 1
            else:
                self._stats.accepted -= 1
                self._stats.dropped += 1
            one.resolve(kept=kept)

    def _report(self, error: OSError) -> None:
        if not self._failing:
            self._failing = True
            logger.warning("the journal in %s fails, usage events stay in memory: %s", self._directory, error)


class _Append(NamedTuple):
    """One event on its way to the disk."""

    event: UsageEvent
    data: bytes
    spill: bool
    done: asyncio.Future[bool]

    def resolve(self, *, kept: bool) -> None:
        """Tell whoever waits, if they still do."""
        if not self.done.done():
            self.done.set_result(kept)
