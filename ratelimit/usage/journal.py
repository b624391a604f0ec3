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
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from ratelimit.event import UsageEvent
from ratelimit.usage.backlog import Backlog
from ratelimit.usage.erasures import Erasures, damaged_files_of
from ratelimit.usage.framing import frame
from ratelimit.usage.holdings import Holdings
from ratelimit.usage.segments import Disk, Lane, Segment
from ratelimit.usage.stats import UsageStats
from ratelimit.usage.writer import Writer

logger = logging.getLogger("ratelimit")

_MOST_WAITING: Final = 8 * 1024 * 1024
# Seconds that a disk may take for its last group, at the end.
_PATIENCE: Final = 5.0


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
        self.holdings = Holdings(self._thread)
        self.backlog = Backlog(self._thread, self.holdings, stats, Erasures(directory))
        self._lane: Lane | None = None
        self._active: Segment | None = None
        self._gathering: _Group | None = None
        self._committing: _Group | None = None
        self._waiting_bytes = 0
        self._failing = False
        self._hangs = False
        self._released: Future[None] | None = None
        self.waiting = 0
        """Events on their way to the disk, or back from it, that will need room in memory."""

    @property
    def full(self) -> bool:
        """Whether the disk is so far behind that no more should be appended."""
        return self._waiting_bytes >= _MOST_WAITING

    def append(self, event: UsageEvent, *, spill: bool) -> asyncio.Future[bool]:
        """Done when the event is on the disk or, as the second best, in memory; False where it is lost.

        With `spill` the disk has the only copy, which waits in the `backlog`.
        """
        loop = asyncio.get_running_loop()
        if self._gathering is None:
            self._gathering = _Group(loop.create_future())
            if self._committing is None:
                loop.call_soon(self._commit)
        self._gathering.appends.append(one := _Append(event, data := frame(event), spill, loop.create_future()))
        self._waiting_bytes += len(data)
        self.waiting += not spill
        return one.done

    async def settled(self) -> None:
        """Returns when nothing that was appended before is on its way to the disk."""
        last = self._gathering or self._committing
        if last is not None:
            await asyncio.wait([last.over])

    async def finish(self) -> None:
        """The same, at the end: a disk that hangs is not waited for, and what is on its way there is given up."""
        last = self._gathering or self._committing
        if last is None:
            return
        await asyncio.wait([last.over], timeout=_PATIENCE)
        groups = [group for group in (self._committing, self._gathering) if group is not None]
        self._committing = self._gathering = None
        given_up = [one for group in groups for one in group.appends]
        for one in given_up:
            self._lose(one)
        for group in groups:
            group.over.set_result(None)
        if given_up:
            self._hangs = True
            logger.error("the disk of the journal in %s hangs: %d events are lost", self._directory, len(given_up))

    async def open(self) -> None:
        """Make the directory, and this process's lane in it. Raises `OSError`."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._own_lane)

    async def adopt(self) -> None:
        """Put what dead processes left into the backlog."""
        await self.backlog.adopt(self._directory, self._disk)

    async def roll(self) -> None:
        """Append elsewhere from now on, so that what the table has goes from the disk."""
        if (segment := self._active) is None:
            return
        await asyncio.get_running_loop().run_in_executor(self._thread, segment.close)
        if self._active is segment:  # what was appended until then is counted by now
            self._active = None
            self.holdings.done(segment)

    async def damaged_files_of(self, users: Iterable[str]) -> list[str]:
        """The damaged segments in which one of these users stands, of those too that are just being put aside."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, damaged_files_of, self._directory, users)

    async def close(self) -> None:
        """Delete what the table has, and leave everything else to the next start. A thread that hangs is left alone."""
        if self._released is None:
            if self._active is not None:
                self.holdings.done(self._active)
            self._released = self._thread.submit(self._release)
            self._thread.shutdown(wait=False)
        await asyncio.wait([asyncio.wrap_future(self._released)], timeout=0 if self._hangs else _PATIENCE)

    def abandon(self) -> list[UsageEvent]:
        """Let others adopt what is there, when the event loop is gone; what was on its way to the disk. Blocks."""
        self._thread.submit(self._release).result(_PATIENCE)
        self._thread.shutdown(wait=False)
        groups = [group for group in (self._committing, self._gathering) if group is not None]
        return [one.event for group in groups for one in group.appends]

    def _release(self) -> None:
        self.backlog.release()
        if self._lane is not None:
            self._lane.release()

    def _commit(self) -> None:
        """Send the next group to the disk, if there is one. No task: a program that cancels all of its own goes on."""
        group = self._committing = self._gathering
        if group is None:
            return
        self._gathering = None
        data = b"".join([one.data for one in group.appends])
        appending = asyncio.get_running_loop().run_in_executor(self._thread, self._append, data)
        appending.add_done_callback(partial(self._committed, group, len(data)))

    def _committed(self, group: _Group, size: int, appending: asyncio.Future[tuple[Segment, int]]) -> None:
        error = appending.exception()
        self._waiting_bytes -= size
        if group is not self._committing:  # it was given up
            return
        try:
            if error is None:
                self._succeeded(group.appends, *appending.result())
            else:
                self._failed(group.appends, error)
        finally:
            group.over.set_result(None)
            self._commit()

    def _append(self, data: bytes) -> tuple[Segment, int]:
        """In the thread."""
        if self.holdings.bytes + len(data) > self._journal_bytes:
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
            self.holdings.bytes += len(one.data)
            one.resolve(kept=True)
            start = end
        if former is not None and former is not segment:
            self.holdings.done(former)

    def _failed(self, group: list[_Append], error: BaseException) -> None:
        """Memory is the second best, as far as there is room for those that the disk was to hold alone."""
        if not self._failing:
            self._failing = True
            bug = None if isinstance(error, OSError) else error
            logger.warning(
                "the journal in %s fails, usage events stay in memory: %s", self._directory, error, exc_info=bug
            )
        for one in group:
            if one.spill and self._writer.room <= 0:
                self._lose(one)
                continue
            self.waiting -= not one.spill
            self._writer.add(one.event)
            self._stats.unjournaled += 1
            one.resolve(kept=True)

    def _lose(self, one: _Append) -> None:
        self.waiting -= not one.spill
        self._stats.accepted -= 1
        self._stats.dropped += 1
        one.resolve(kept=False)


class _Group:
    """Events that share a sync."""

    __slots__ = ("appends", "over")

    def __init__(self, over: asyncio.Future[None]) -> None:
        self.appends: list[_Append] = []
        self.over = over


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
