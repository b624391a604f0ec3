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
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from ratelimit.event import UsageEvent
from ratelimit.usage.segments import (
    DAMAGED,
    Erasures,
    JournalLock,
    Segment,
    SegmentRead,
    adopt_dead,
    damaged_files_of,
    frame,
)
from ratelimit.usage.settings import UsageSettings, UsageStats

if TYPE_CHECKING:
    from ratelimit.usage.pipeline import EventWriter

T = TypeVar("T")

logger = logging.getLogger("ratelimit")

_MAX_WAITING_BYTES: Final = 8 * 1024 * 1024
# What a disk may take for its last group, at the end.
_DISK_TIMEOUT_S: Final = 5.0


class Journal:
    """One per log and event loop; its files are touched in a thread of its own. Feeds the `writer` what is kept."""

    def __init__(self, directory: Path, settings: UsageSettings, stats: UsageStats, writer: EventWriter) -> None:
        self._directory = directory
        self._settings = settings
        self._stats = stats
        self._writer = writer
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ratelimit-journal")
        self.refs = SegmentRefs(self._thread)
        self.replay = ReplayQueue(self._thread, directory, self.refs, stats)
        self._lock: JournalLock | None = None
        self._active: Segment | None = None
        self._gathering: _CommitGroup | None = None
        self._committing: _CommitGroup | None = None
        self._waiting_bytes = 0
        self._failing = False
        self._hangs = False
        self._released: Future[None] | None = None
        self.waiting = 0
        """Events on their way to the disk, or back from it, that will need room in memory."""

    @property
    def is_full(self) -> bool:
        """Return whether the disk is so far behind that no more should be appended."""
        return self._waiting_bytes >= _MAX_WAITING_BYTES

    def append(self, event: UsageEvent, *, spill: bool) -> asyncio.Future[bool]:
        """Keep an event: done when it is on the disk or, as the second best, in memory; False where it is lost.

        With `spill` the disk has the only copy, which waits to be replayed.
        """
        loop = asyncio.get_running_loop()
        if self._gathering is None:
            self._gathering = _CommitGroup(loop.create_future(), [])
            if self._committing is None:
                loop.call_soon(self._commit)
        self._gathering.appends.append(one := _PendingAppend(event, data := frame(event), spill, loop.create_future()))
        self._waiting_bytes += len(data)
        self.waiting += not spill
        return one.done

    @property
    def is_idle(self) -> bool:
        return self._gathering is None and self._committing is None

    async def settled(self) -> None:
        last = self._gathering or self._committing
        if last is not None:
            await asyncio.wait([last.over])

    async def finish(self) -> None:
        """Do the same at the end: a disk that hangs is not waited for, and what is on its way there is given up."""
        last = self._gathering or self._committing
        if last is None:
            return
        await asyncio.wait([last.over], timeout=_DISK_TIMEOUT_S)
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
        """Make the directory, and this process's lock in it. Raise `OSError`."""
        await self._in_thread(self._own_lock)

    async def roll(self) -> None:
        """Append elsewhere from now on, so that what the table has goes from the disk."""
        if (segment := self._active) is None:
            return
        await self._in_thread(segment.close)
        if self._active is segment:  # what was appended until then is counted by now
            self._active = None
            self.refs.finish(segment)

    async def damaged_files_of(self, users: Iterable[str]) -> list[str]:
        """Return the damaged segments that name one of these users, those that are just being put aside as well."""
        return await self._in_thread(damaged_files_of, self._directory, users)

    async def close(self) -> None:
        """Delete what the table has, and leave everything else to the next start. A thread that hangs is left alone."""
        if self._released is None:
            if self._active is not None:
                self.refs.finish(self._active)
            self._released = self._thread.submit(self._release)
            self._thread.shutdown(wait=False)
        await asyncio.wait([asyncio.wrap_future(self._released)], timeout=0 if self._hangs else _DISK_TIMEOUT_S)

    def abandon(self) -> list[UsageEvent]:
        """Let others adopt what is there, as the event loop is gone, and return what was on its way there. Blocks."""
        self._thread.submit(self._release).result(_DISK_TIMEOUT_S)
        self._thread.shutdown(wait=False)
        groups = [group for group in (self._committing, self._gathering) if group is not None]
        return [one.event for group in groups for one in group.appends]

    def _release(self) -> None:
        self.replay.release()
        if self._lock is not None:
            self._lock.release()

    def _commit(self) -> None:
        """Send the next group to the disk, if there is one. No task: a program that cancels all of its own goes on."""
        group = self._committing = self._gathering
        if group is None:
            return
        self._gathering = None
        data = b"".join([one.data for one in group.appends])
        appending = self._in_thread(self._append, data)
        appending.add_done_callback(partial(self._committed, group, len(data)))

    def _committed(self, group: _CommitGroup, size: int, appending: asyncio.Future[tuple[Segment, int]]) -> None:
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
        if self.refs.bytes + len(data) > (most := self._settings.journal_bytes):
            raise OSError(errno.EDQUOT, f"the journal may take {most} bytes, and does")
        return self._own_lock().append(data, segment_bytes=self._settings.segment_bytes)

    def _own_lock(self) -> JournalLock:
        if self._lock is None:
            self._lock = JournalLock.create(self._directory)
        return self._lock

    def _in_thread(self, work: Callable[..., T], *args: object) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._thread, work, *args)

    def _succeeded(self, group: list[_PendingAppend], segment: Segment, start: int) -> None:
        if self._failing:
            self._failing = False
            logger.warning("the journal takes usage events again")
        former, self._active = self._active, segment
        for one in group:
            end = start + len(one.data)
            if one.spill:
                segment.unwritten += 1
                self.replay.add_spilled(segment, start, end)
            else:
                self.refs.hold(one.event, segment)
                self.waiting -= 1
                self._writer.add(one.event)
            self._stats.spilled += one.spill
            self.refs.bytes += len(one.data)
            one.resolve(kept=True)
            start = end
        if former is not None and former is not segment:
            self.refs.finish(former)

    def _failed(self, group: list[_PendingAppend], error: BaseException) -> None:
        """Keep them in memory, as far as there is room for those that the disk was to hold alone."""
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

    def _lose(self, one: _PendingAppend) -> None:
        self.waiting -= not one.spill
        self._stats.accepted -= 1
        self._stats.dropped += 1
        one.resolve(kept=False)


class _CommitGroup(NamedTuple):
    over: asyncio.Future[None]
    appends: list[_PendingAppend]


class _PendingAppend(NamedTuple):
    event: UsageEvent
    data: bytes
    spill: bool
    done: asyncio.Future[bool]

    def resolve(self, *, kept: bool) -> None:
        if not self.done.done():
            self.done.set_result(kept)


class SegmentRefs:
    """Which segment holds which event, so that a segment goes when the table has all that is in it.

    Belongs to the event loop; deletes in the journal's thread.
    """

    def __init__(self, thread: Executor) -> None:
        self._thread = thread
        self.bytes = 0
        """Of all segments that are not deleted."""
        # By identity: the same event may be in two segments, when a replay was cut short.
        self._segment_of: dict[int, Segment] = {}

    def hold(self, event: UsageEvent, segment: Segment, *, counted: bool = False) -> None:
        """Note that the event is in memory, and in this segment, where it may have been `counted` already."""
        self._segment_of[id(event)] = segment
        if not counted:
            segment.unwritten += 1

    def holds(self, event: UsageEvent) -> bool:
        return id(event) in self._segment_of

    def release(self, events: Sequence[UsageEvent]) -> None:
        for event in events:
            segment = self._segment_of.pop(id(event), None)
            if segment is not None:
                segment.unwritten -= 1
                self._delete_if_done(segment)

    def finish(self, segment: Segment) -> None:
        """Note that no more will be appended to the segment, nor read from it."""
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


class ReplayQueue:
    """What only the disk holds, in line to be read back: what was spilled, and what dead processes left.

    Belongs to the event loop; reads in the journal's thread.
    """

    def __init__(self, thread: Executor, directory: Path, refs: SegmentRefs, stats: UsageStats) -> None:
        self.erasures = Erasures(directory)
        """As they were when the last events were read."""
        self._thread = thread
        self._directory = directory
        self._refs = refs
        self._stats = stats
        self._queue: deque[_ByteRange] = deque()
        self._unreadable: list[_ByteRange] = []
        self._locks: list[JournalLock] = []
        self._failures: dict[str, OSError] = {}
        self._filled = asyncio.Event()
        self.queued_bytes = 0
        """All that ever were in line."""
        self.passed_bytes = 0
        """Of these, those that were read, or skipped."""

    def __bool__(self) -> bool:
        return bool(self._queue)

    async def filled(self) -> None:
        while not self._queue:
            self._filled.clear()
            await self._filled.wait()

    def add_spilled(self, segment: Segment, start: int, end: int) -> None:
        """Put in line an event that is only there."""
        last = self._queue[-1] if self._queue else None
        if last is not None and last.segment is segment and last.end == start:
            last.end = end
            self.queued_bytes += end - start
        else:
            self._enqueue(_ByteRange(segment, start, end, adopted=False))

    async def adopt(self) -> None:
        """Put in line what dead processes left, and once more what could not be read."""
        loop = asyncio.get_running_loop()
        locks, failures = await loop.run_in_executor(self._thread, self._adopt_dead)
        for name in failures.keys() - self._failures:
            logger.warning("cannot look into %s/%s, it is tried again: %s", self._directory, name, failures[name])
        self._failures = failures
        again, self._unreadable = self._unreadable, []
        for part in again:
            self._enqueue(part)
        for lock in locks:
            for segment in list(lock.segments):
                self._refs.bytes += segment.size
                self._enqueue(_ByteRange(segment, 0, segment.size, adopted=True))

    async def read(self, most: int) -> list[UsageEvent]:
        part = self._queue[0]
        segment, start, end = part.segment, part.start, part.end

        def read_on() -> SegmentRead:
            self.erasures.load()
            return segment.read(start, end, most=most)

        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(self._thread, read_on)
        except OSError as error:
            self._put_aside(part, end, error)
            return []
        for event in found.events:
            self._refs.hold(event, segment, counted=not part.adopted)
        if part.adopted:
            self._stats.replayed += len(found.events)
        if not found.events and start < end:
            self._skip(part, found)
        self._pass(part, found.end)
        if part.adopted and part.start == part.end:
            self._refs.finish(segment)
        return found.events

    def release(self) -> None:
        """Let others adopt what is still in line. Blocks: for the journal's thread."""
        for lock in self._locks:
            lock.release()

    def _adopt_dead(self) -> tuple[list[JournalLock], dict[str, OSError]]:
        """Adopt in the thread: so `release` knows every lock, even if nobody waits for this answer any more."""
        locks, failures = adopt_dead(self._directory)
        for lock in locks:
            lock.release_when_empty()
        self._locks = [*(former for former in self._locks if former.segments), *locks]
        return locks, failures

    def _enqueue(self, part: _ByteRange) -> None:
        self._queue.append(part)
        self.queued_bytes += part.end - part.start
        self._filled.set()

    def _skip(self, part: _ByteRange, found: SegmentRead) -> None:
        """Count what is no record: the end of a segment whose writer has died, or damage."""
        segment, start = part.segment, part.start
        if found.torn and part.adopted:
            self._stats.torn += 1
            logger.warning("%s is torn: its last %d bytes are no record", segment.path.name, found.end - start)
        elif not segment.damaged:
            segment.damaged = True
            self._stats.damaged += 1
            logger.error(
                "%s is damaged at byte %d, records may be lost: what is sound is read, and the file kept as %s",
                segment.path.name, start, segment.path.name + DAMAGED,
            )  # fmt: skip

    def _put_aside(self, part: _ByteRange, end: int, error: OSError) -> None:
        """Leave it until the next look for what dead processes left: it is not to hold up the others."""
        name = part.segment.path.name
        if not part.failed:
            logger.warning("cannot read %s, it is tried again: %s", name, error)
        self._unreadable.append(_ByteRange(part.segment, part.start, end, part.adopted, failed=True))
        self._pass(part, end)

    def _pass(self, part: _ByteRange, to: int) -> None:
        self.passed_bytes += to - part.start
        part.start = to
        if part.start >= part.end:
            self._queue.popleft()


@dataclass(slots=True)
class _ByteRange:
    """Bytes of a segment. Those of a dead process are a whole segment."""

    segment: Segment
    start: int
    end: int
    adopted: bool
    failed: bool = False
