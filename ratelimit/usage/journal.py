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
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from ratelimit.event import UsageEvent
from ratelimit.usage.erasing import Erasures, damaged_files_of
from ratelimit.usage.options import UsageStats
from ratelimit.usage.segments import DAMAGED, Disk, Found, Lane, Segment, dead_lanes, frame
from ratelimit.usage.writer import Writer

logger = logging.getLogger("ratelimit")


# `Holdings`: which segment holds which event, so that a segment goes when the table has all that is in it.


class Holdings:
    """Belongs to the event loop; deletes in the journal's thread."""

    def __init__(self, thread: Executor) -> None:
        self._thread = thread
        self.bytes = 0
        """Of all segments that are not done with."""
        # By identity: the same event may be in two segments, when a replay was cut short.
        self._segment_of: dict[int, Segment] = {}

    def hold(self, event: UsageEvent, segment: Segment, *, counted: bool = False) -> None:
        """The event is in memory now, and in this segment, where it may have been `counted` already."""
        self._segment_of[id(event)] = segment
        if not counted:
            segment.unwritten += 1

    def holds(self, event: UsageEvent) -> bool:
        """Whether the next start would find it."""
        return id(event) in self._segment_of

    def over(self, events: Sequence[UsageEvent]) -> None:
        """The table has them, or will never take them."""
        for event in events:
            segment = self._segment_of.pop(id(event), None)
            if segment is not None:
                segment.unwritten -= 1
                self._delete_if_done(segment)

    def done(self, segment: Segment) -> None:
        """No more will be appended to it, nor read from it."""
        segment.done = True
        self._delete_if_done(segment)

    def _delete_if_done(self, segment: Segment) -> None:
        if segment.done and not segment.unwritten:
            self.bytes -= segment.size
            self._thread.submit(_delete, segment)


def _delete(segment: Segment) -> None:
    try:
        segment.delete()
    except OSError as error:
        logger.warning("cannot delete %s, it will be replayed at the next start: %s", segment.path.name, error)


# `Backlog`: what only the disk holds, in line to be read back: what was spilled, and what dead processes left.


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
