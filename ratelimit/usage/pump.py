"""`Pump`: what runs while a log is open. The writer, the journal, and the task that feeds the one from the other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from ratelimit.clock import SECOND, Clock
from ratelimit.errors import StoreUnavailable
from ratelimit.event import UsageEvent
from ratelimit.store.events import EventStore
from ratelimit.usage.journal import Journal
from ratelimit.usage.options import Settings
from ratelimit.usage.stats import UsageStats
from ratelimit.usage.writer import Random, Sleep, Writer

logger = logging.getLogger("ratelimit")

_MOST_READ: Final = 500


class Pump:
    """Made inside of a running event loop, and begins at once."""

    def __init__(
        self, store: EventStore, settings: Settings, stats: UsageStats, clock: Clock, sleep: Sleep, random: Random
    ) -> None:
        self._settings = settings
        self._stats = stats
        self._clock = clock
        self._tasks: list[asyncio.Task[None]] = []
        self.writer = Writer(
            store,
            stats,
            max_queue=settings.max_queue,
            flush_interval=settings.flush_interval,
            in_flight=settings.in_flight,
            written=self._written,
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
            self._adopted = asyncio.create_task(self.journal.adopt())
            self._tasks = [
                self._adopted,
                asyncio.create_task(self._adopt_again(self.journal)),
                asyncio.create_task(self._feed(self.journal)),
            ]

    @property
    def room(self) -> int:
        """How many more events the queue can take, those counted that are still on their way to the disk."""
        if self.journal is None:
            return self.writer.room
        if self._settings.durability == "journal" and self.journal.full:
            return 0
        return self.writer.room - self.journal.waiting

    async def open(self) -> None:
        """The journal is ours, and what dead processes left in it is in line. Raises `OSError`."""
        if self.journal is not None:
            await self.journal.open()
            await asyncio.wait([self._adopted])

    async def flush(self) -> None:
        """See `UsageLog.flush`."""
        if self.journal is not None:
            await asyncio.wait([self._adopted])
            await self.journal.settled()
            backlog = self.journal.backlog
            target = backlog.queued
            while backlog.passed < target:
                self.writer.hurry()
                await self.writer.changed(or_after=0.1)
                self._raise_if_stopped()
        await self.writer.flush()

    async def stop(self, grace: float) -> None:
        """Write for at most `grace` seconds, and put down everything."""
        try:
            async with asyncio.timeout(grace):
                await self.flush()
        except TimeoutError:
            pass
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.journal is not None:
            await self.journal.settled()
        left = await self.writer.stop()
        lost = left if self.journal is None else [event for event in left if not self.journal.holdings.holds(event)]
        if left:
            kept = len(left) - len(lost)
            self._stats.dropped += len(lost)
            logger.warning("closed before the table had %d usage events; the journal keeps %d", len(left), kept)
        if self.journal is not None:
            await self.journal.close()

    def _written(self, events: Sequence[UsageEvent]) -> None:
        if self.journal is not None:
            self.journal.holdings.written(events)

    def _raise_if_stopped(self) -> None:
        if self.writer.stopped:
            raise StoreUnavailable("the usage log was closed before everything was in the table")

    async def _adopt_again(self, journal: Journal) -> None:
        while True:
            await asyncio.sleep(self._settings.adopt_interval)
            await journal.adopt()

    async def _feed(self, journal: Journal) -> None:
        """Read back what only the disk holds, as long as the queue is less than half full."""
        while True:
            while not journal.backlog:
                journal.backlog.arrived.clear()
                await journal.backlog.arrived.wait()
            while (room := self.room - self._settings.max_queue // 2) <= 0:
                await self.writer.changed()
            expired = []
            for event in await journal.backlog.read(min(room, _MOST_READ)):
                if event.expires_at * SECOND <= self._clock.now():
                    expired.append(event)
                else:
                    self.writer.add(event)
            journal.holdings.written(expired)
