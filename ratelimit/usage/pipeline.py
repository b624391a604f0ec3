"""`Pump`: what runs while a log is open. The writer, the journal, and the task that feeds the one from the other."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Coroutine, Sequence
from typing import Any, Final

from ratelimit.clock import SECOND, Clock
from ratelimit.errors import StoreUnavailable
from ratelimit.event import UsageEvent
from ratelimit.store.base import EventStore
from ratelimit.usage.journal import Journal
from ratelimit.usage.options import Settings, UsageStats
from ratelimit.usage.writer import Random, Sleep, Writer

logger = logging.getLogger("ratelimit")


_MOST_READ: Final = 500
_TWO_LOOPS: Final = (
    "the usage log is at work in another event loop, which runs in another thread; make a log of its own for each loop"
)


class Pump:
    """Made inside of a running event loop, and begins at once."""

    def __init__(
        self, store: EventStore, settings: Settings, stats: UsageStats, clock: Clock, sleep: Sleep, random: Random
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self._process = os.getpid()
        self._settings = settings
        self._stats = stats
        self._clock = clock
        self._behind = settings.full == "spill"
        self._tasks: list[asyncio.Task[None]] = []
        self._down: asyncio.Task[None] | None = None
        self.writer = Writer(
            store,
            stats,
            max_queue=settings.max_queue,
            flush_interval=settings.flush_interval,
            in_flight=settings.in_flight,
            over=self._over,
            sleep=sleep,
            random=random,
        )
        self.journal: Journal | None = None
        if settings.directory is not None:
            self.journal = Journal(
                settings.directory,
                stats,
                self.writer,
                segment_bytes=settings.segment_bytes,
                journal_bytes=settings.journal_bytes,
                disk=settings.disk,
            )
            self._adopted = self._start(self.journal.adopt())
            self._feeding = self._start(self._feed(self.journal))
            self._start(self._adopt_again(self.journal))

    @property
    def room(self) -> int:
        """How many more events the queue can take, those counted that are still on their way to the disk.

        Where events may spill, at most half of it, as long as others wait on the disk: else these might wait for ever.
        """
        if self.journal is None:
            return self.writer.room
        if self._settings.durability == "journal" and self.journal.full:
            return 0
        kept_free = self._settings.max_queue // 2 if self._behind and self.journal.backlog else 0
        return self.writer.room - self.journal.waiting - kept_free

    async def open(self) -> None:
        """The journal is ours, and what dead processes left in it is in line. Raises `OSError`."""
        if self.journal is not None:
            await self.journal.open()
            await asyncio.wait([self._adopted])

    async def flush(self) -> None:
        """See `UsageLog.flush`."""
        if self.journal is None:
            await self.writer.flush()
            return
        await asyncio.wait([self._adopted])
        await self.journal.settled()
        backlog = self.journal.backlog
        target = backlog.queued
        while backlog.passed < target and not self._feeding.done():
            self.writer.hurry()
            await self.writer.changed(or_after=0.1)
        await self.writer.flush()
        if backlog.passed < target:
            raise StoreUnavailable("the usage log was closed, or failed, before all of its journal was in the table")

    async def stop(self, grace: float) -> None:
        """Write for at most `grace` seconds, and put down everything, even if this is cancelled meanwhile."""
        try:
            async with asyncio.timeout(grace):
                await self.flush()
        except (TimeoutError, StoreUnavailable):
            pass
        finally:
            if self._down is None or self._down.cancelled():
                self._down = asyncio.create_task(self._put_down())
            await asyncio.shield(self._down)

    async def _put_down(self) -> None:
        """What it counts it counts at once, so that it may be cancelled, and begin again, anywhere."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.journal is not None:
            await self.journal.finish()
        left = self.writer.stop()
        lost = left if self.journal is None else [event for event in left if not self.journal.holdings.holds(event)]
        if left:
            kept = len(left) - len(lost)
            self._stats.dropped += len(lost)
            logger.warning("closed before the table had %d usage events; the journal keeps %d", len(left), kept)
        await self.writer.landed()
        if self.journal is not None:
            await self.journal.close()

    def abandon(self) -> list[UsageEvent]:
        """What has to be written in another event loop, as this one's is gone. Blocks for a moment.

        That which is in the journal is found there. What a parent process has, that goes on itself, is left to it.
        Raises `StoreUnavailable` where the event loop is not gone.
        """
        forked = self._process != os.getpid()
        if forked and not self.loop.is_closed():
            return []
        if self.loop.is_running():
            raise StoreUnavailable(_TWO_LOOPS)
        left = self.writer.abandon()
        if self.journal is None:
            return left
        left = [event for event in left if not self.journal.holdings.holds(event)]
        return left if forked else [*left, *self.journal.abandon()]

    def _over(self, events: Sequence[UsageEvent]) -> None:
        if self.journal is not None:
            self.journal.holdings.over(events)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        task.add_done_callback(_report_bug)
        self._tasks.append(task)
        return task

    async def _adopt_again(self, journal: Journal) -> None:
        while True:
            await asyncio.sleep(self._settings.adopt_interval)
            await journal.adopt()

    async def _feed(self, journal: Journal) -> None:
        """Read back what only the disk holds, as long as the queue is less than three quarters full."""
        up_to = max(1, self._settings.max_queue * 3 // 4)
        while True:
            while not journal.backlog:
                journal.backlog.arrived.clear()
                await journal.backlog.arrived.wait()
            while (most := min(_MOST_READ, up_to - self.writer.depth - journal.waiting)) <= 0:
                await self.writer.changed()
            journal.waiting += most  # or others would have this room, before the disk has answered
            try:
                found = await journal.backlog.read(most)
            finally:
                journal.waiting -= most
            over = []
            for event in found:
                if journal.backlog.erasures.covers(event):
                    self._stats.erased += 1
                    over.append(event)
                elif event.expires_at * SECOND <= self._clock.now():
                    over.append(event)
                else:
                    self.writer.add(event)
            journal.holdings.over(over)


def _report_bug(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        logger.error("a bug stopped a part of the usage log: %r", error, exc_info=error)
