"""What runs while a log is open, in one event loop: the writer to the table, and the journal that feeds it."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from ratelimit.clock import SECOND, Clock
from ratelimit.errors import StoreMisconfigured, StoreRefused, StoreUnavailable
from ratelimit.event import EventDraft, UsageEvent, made
from ratelimit.retry import Backoff
from ratelimit.store.base import MAX_EVENTS_PER_PUT, EventStore, TimelinePlace
from ratelimit.tasks import Tasks
from ratelimit.usage.journal import Journal
from ratelimit.usage.settings import UsageSettings, UsageStats

logger = logging.getLogger("ratelimit")

_BACKOFF: Final = Backoff(first_s=0.05, max_s=5.0)
# Far beyond any answer: it only keeps a batch from waiting for ever.
_PUT_TIMEOUT_S: Final = 15.0
_FAILURES_BEFORE_WARNING: Final = 5
_MAX_REPLAYED_AT_ONCE: Final = 500
_TWO_LOOPS: Final = (
    "the usage log is at work in another event loop, which runs in another thread; make a log of its own for each loop"
)


class Pipeline:
    """Made inside of a running event loop, and begins at once."""

    def __init__(
        self,
        store: EventStore,
        settings: UsageSettings,
        stats: UsageStats,
        clock: Clock,
        timelines: Collection[str] = (),
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self._process = os.getpid()
        self._settings = settings
        self._stats = stats
        self._clock = clock
        self._spills = settings.full == "spill"
        self._tasks = Tasks("a part of the usage log")
        self._ending: asyncio.Task[None] | None = None
        self.writer = EventWriter(store, settings, stats, self._settled, timelines)
        if timelines:
            self._tasks.start(self._look_at_timelines(store, timelines))
        self.journal: Journal | None = None
        if settings.directory is not None:
            self.journal = Journal(settings.directory, settings, stats, self.writer)
            self._adopting = self._tasks.start(self.journal.replay.adopt())
            self._replaying = self._tasks.start(self._replay(self.journal))
            self._tasks.start(self._adopt_again(self.journal))

    @property
    def room(self) -> int:
        """Return how many more events the queue can take, those counted that are still on their way to the disk.

        Where events may spill, at most half of it, as long as others wait on the disk: else these might wait for ever.
        """
        if self.journal is None:
            return self._settings.max_queue - len(self.writer.queue)
        if self._settings.kept_by == "journal" and self.journal.is_full:
            return 0
        kept_free = self._settings.max_queue // 2 if self._spills and self.journal.replay else 0
        return self.writer.room - self.journal.waiting - kept_free

    @property
    def is_idle(self) -> bool:
        """Return whether nothing is on its way, neither to the table nor to the disk."""
        on_disk = self.journal is None or self.journal.is_idle
        return on_disk and not self.writer.queue and not self.writer.in_flight

    async def open(self) -> None:
        """Return when the journal is ours, and what dead processes left is queued. Raise `OSError`."""
        if self.journal is not None:
            await self.journal.open()
            await asyncio.wait([self._adopting])

    async def flush(self) -> None:
        """Return when all that was accepted so far is in the table, what was found in the journal included."""
        if self.journal is None:
            await self.writer.flush()
            return
        await asyncio.wait([self._adopting])
        await self.journal.settled()
        replay = self.journal.replay
        target = replay.queued_bytes
        while replay.passed_bytes < target and not self._replaying.done():
            self.writer.flush_now()
            await self.writer.changed(or_after_s=0.1)
        await self.writer.flush()
        if replay.passed_bytes < target:
            raise StoreUnavailable("the usage log was closed, or failed, before all of its journal was in the table")

    async def stop(self, grace: float) -> None:
        """Write for at most `grace` seconds, and end everything, even if this is cancelled meanwhile."""
        try:
            async with asyncio.timeout(grace):
                await self.flush()
        except (TimeoutError, StoreUnavailable):
            pass
        finally:
            if self._ending is None or self._ending.cancelled():
                self._ending = asyncio.create_task(self._end())
            await asyncio.shield(self._ending)

    async def _end(self) -> None:
        """Count at once what is counted, so that this may be cancelled, and begin again, anywhere."""
        await self._tasks.cancel()
        if self.journal is not None:
            await self.journal.finish()
        left = self.writer.stop()
        if left:
            lost = self._only_in_memory(left)
            self._stats.dropped += len(lost)
            kept = len(left) - len(lost)
            logger.warning("closed before the table had %d usage events; the journal keeps %d", len(left), kept)
        await self.writer.stopped()
        if self.journal is not None:
            await self.journal.close()

    def abandon(self) -> list[UsageEvent]:
        """Return what has to be written in another event loop, as this one's is gone. Blocks for a moment.

        That which is in the journal is found there. What a parent process has, that goes on itself, is left to it.
        Raise `StoreUnavailable` where the event loop is not gone.
        """
        is_forked = self._process != os.getpid()
        if is_forked and not self.loop.is_closed():
            return []
        if self.loop.is_running():
            raise StoreUnavailable(_TWO_LOOPS)
        left = self._only_in_memory(self.writer.abandon())
        return left if self.journal is None or is_forked else [*left, *self.journal.abandon()]

    def _only_in_memory(self, events: list[UsageEvent]) -> list[UsageEvent]:
        return events if self.journal is None else [one for one in events if not self.journal.refs.holds(one)]

    def _settled(self, events: Sequence[UsageEvent]) -> None:
        if self.journal is not None:
            self.journal.refs.release(events)

    async def _look_at_timelines(self, store: EventStore, timelines: Collection[str]) -> None:
        """Warn where the table has no index for them. Events are kept all the same."""
        now = self._clock.now() // 1000
        try:
            await store.timeline(min(timelines), since=now, below=TimelinePlace(now + 1, 0), limit=1)
        except StoreMisconfigured as error:
            logger.warning("no timeline of %s can be read: %s", ", ".join(sorted(timelines)), error)
        except StoreUnavailable:
            pass  # which is said where events are written

    async def _adopt_again(self, journal: Journal) -> None:
        while True:
            await asyncio.sleep(self._settings.adopt_interval)
            await journal.replay.adopt()

    async def _replay(self, journal: Journal) -> None:
        up_to = max(1, self._settings.max_queue * 3 // 4)
        while True:
            await journal.replay.filled()
            while (most := min(_MAX_REPLAYED_AT_ONCE, up_to - len(self.writer.queue) - journal.waiting)) <= 0:
                await self.writer.changed()
            journal.waiting += most  # or others would have this room, before the disk has answered
            try:
                found = await journal.replay.read(most)
            finally:
                journal.waiting -= most
            unwanted = []
            for event in found:
                is_erased = journal.replay.erasures.covers(event)
                self._stats.erased += is_erased
                if is_erased or event.expires_at * SECOND <= self._clock.now():
                    unwanted.append(event)
                else:
                    self.writer.add(event)
            journal.refs.release(unwanted)


class EventWriter:
    """A queue, and a few batches of up to 25 events in flight, each sent again until the table has it.

    An event goes out when 25 wait, or `flush_interval` seconds after it came. A store that fails is tried again for as
    long as it takes. A batch that it calls invalid is sent in parts; an event that it refuses alone, while it takes
    others, is dropped. `on_settled` hears of every event that is in the table, in the order of arrival there, and of
    those that never will be.
    """

    def __init__(
        self,
        store: EventStore,
        settings: UsageSettings,
        stats: UsageStats,
        on_settled: Callable[[Sequence[UsageEvent]], None],
        timelines: Collection[str] = (),
    ) -> None:
        self._store = store
        self._settings = settings
        self._stats = stats
        self._on_settled = on_settled
        self._timelines = timelines
        self.queue: deque[UsageEvent | EventDraft] = deque()
        """What waits."""
        self._taken = 0
        """How many have left it since the beginning."""
        # Without a task: somebody who cancels all tasks has ended it, and `flush_now` begins again.
        self._batches: dict[_InFlightBatch, asyncio.Task[None] | None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._is_due = False
        self._failing: _InFlightBatch | None = None
        self._changed = asyncio.Event()
        self._is_stopped = False

    @property
    def in_flight(self) -> int:
        return sum(len(batch.left) for batch in self._batches)

    @property
    def is_failing(self) -> bool:
        """Return whether the store has not taken anything for a while."""
        return self._failing is not None

    @property
    def room(self) -> int:
        return self._settings.max_queue - len(self.queue)

    def add(self, event: UsageEvent | EventDraft) -> None:
        """Take an event over. The caller has looked for `room`, and gives drafts where there is no journal."""
        queue = self.queue
        queue.append(event)
        if len(queue) >= MAX_EVENTS_PER_PUT:
            self._send_due()
        elif self._timer is None:
            self._flush_later()

    async def changed(self, *, or_after_s: float | None = None) -> None:
        """Return when events have left the queue, or reached the table, or after so many seconds."""
        self._changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(or_after_s):
                await self._changed.wait()

    async def flush(self, *, until_failing: bool = False) -> None:
        """Return when all that was added before is in the table; with `until_failing`, also when the store fails.

        Raise `StoreUnavailable` when stopped meanwhile.
        """
        target = self._taken + len(self.queue)
        while self._oldest() <= target and not (until_failing and self.is_failing):
            self.flush_now()
            await self.changed()
            if self._is_stopped:
                raise StoreUnavailable("the usage log was closed before everything was in the table")

    def flush_now(self) -> None:
        """Send what waits, even if it makes no full batch."""
        self._cancel_timer()
        self._is_due = True
        for batch, task in list(self._batches.items()):
            if task is None and not self._is_stopped:
                self._start(batch)
        self._send_due()

    def stop(self) -> list[UsageEvent]:
        """Give up, and return what is not known to be in the table. The batches end a little later: see `stopped`."""
        self._cancel_timer()
        left = self._give_up()
        for task in filter(None, self._batches.values()):
            task.cancel()
        self._changed.set()
        return left

    def abandon(self) -> list[UsageEvent]:
        """Do the same where the event loop is gone and nothing of it can be waited for."""
        left = self._give_up()
        self._batches.clear()
        return left

    def forget(self) -> None:
        self._taken += len(self.queue)
        self.queue.clear()

    def _give_up(self) -> list[UsageEvent]:
        self._is_stopped = True
        left = [event for batch in self._batches for event in batch.left] + [made(one) for one in self.queue]
        self.queue.clear()
        for batch in self._batches:
            batch.left = []
        return left

    async def stopped(self) -> None:
        await asyncio.gather(*filter(None, self._batches.values()), return_exceptions=True)

    def _oldest(self) -> int:
        """Return the number of the oldest event that is not in the table yet, the first one ever being 1."""
        return min((batch.first for batch in self._batches), default=self._taken + 1)

    def _flush_later(self) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._settings.flush_interval, self.flush_now)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _send_due(self) -> None:
        """Send what is due, as far as there may be more batches; what is not due yet has its time set."""
        queue = self.queue
        while queue and len(self._batches) < self._settings.in_flight:
            if len(queue) < MAX_EVENTS_PER_PUT and not self._is_due:
                break
            events = [made(queue.popleft()) for _ in range(min(MAX_EVENTS_PER_PUT, len(queue)))]
            self._start(_InFlightBatch(self._taken + 1, events, self._stats.written))
            self._taken += len(events)
            self._changed.set()
        if not queue:
            self._is_due = False
        elif not self._is_due:
            self._flush_later()

    def _start(self, batch: _InFlightBatch) -> None:
        task = self._batches[batch] = asyncio.get_running_loop().create_task(self._send(batch))
        task.add_done_callback(partial(self._ended, batch))

    def _ended(self, batch: _InFlightBatch, task: asyncio.Task[None]) -> None:
        self._changed.set()
        if task.cancelled() and not self._is_stopped:
            self._batches[batch] = None
            self._flush_later()
            return
        self._batches.pop(batch, None)
        if self._failing is batch:
            self._failing = None
        if not task.cancelled() and (error := task.exception()):
            self._stats.dropped += len(batch.left)
            logger.error("a bug lost %d usage events", len(batch.left), exc_info=error)
        self._send_due()

    async def _send(self, batch: _InFlightBatch) -> None:
        attempt = 0
        while True:
            batch.error, batch.refused = None, []
            unwritten = await self._put(batch, batch.left)
            done = _without(batch.left, unwritten)
            batch.left = list(unwritten)
            if done:
                self._stats.written += len(done)
                if self._timelines:
                    self._stats.indexed += sum(event.action in self._timelines for event in done)
                self._on_settled(done)
            if batch.refused:
                self._drop_refused(batch)
            self._report(batch)
            if not batch.left:
                return
            attempt = max(1, attempt - 1) if done else attempt + 1
            self._stats.retried += len(batch.left)
            await _BACKOFF.pause(attempt)

    async def _put(self, batch: _InFlightBatch, events: list[UsageEvent]) -> Sequence[UsageEvent]:
        """Return those that the store did not take; all of them where it gave no answer."""
        takes_others = self._stats.written > batch.written_before
        try:
            async with asyncio.timeout(_PUT_TIMEOUT_S):
                return await self._store.put(events, timelines=self._timelines)
        except StoreRefused as error:
            if len(events) > 1:
                middle = len(events) // 2
                return [*await self._put(batch, events[:middle]), *await self._put(batch, events[middle:])]
            if takes_others:  # or what it holds against all of them may be mended yet
                batch.refused += events
            batch.error = error
        except (StoreUnavailable, TimeoutError) as error:
            batch.error = error
        return events

    def _drop_refused(self, batch: _InFlightBatch) -> None:
        for event in batch.refused:
            logger.error("the store refuses the usage event %r, and it is lost: %s", event.id, batch.error)
        self._stats.dropped += len(batch.refused)
        batch.left = _without(batch.left, batch.refused)
        self._on_settled(batch.refused)

    def _report(self, batch: _InFlightBatch) -> None:
        """Say that events wait, once while it lasts; a batch that is held up is not to go unseen among others."""
        if batch.error is not None:
            batch.failures += 1
            if batch.failures >= _FAILURES_BEFORE_WARNING and self._failing is None:
                self._failing = batch
                self._changed.set()
                why = str(batch.error) or "no answer in time"
                logger.warning("usage events wait, the store does not take them: %s", why)
        else:
            batch.failures = 0
        if self._failing is batch and (batch.error is None or not batch.left):
            self._failing = None
            logger.warning("the store takes usage events again")


@dataclass(slots=True, eq=False)
class _InFlightBatch:
    """A batch on its way: the number of its first event, and what is not in the table yet."""

    first: int
    left: list[UsageEvent]
    written_before: int
    """How many events the log had written as it began."""
    error: Exception | None = None
    refused: list[UsageEvent] = field(default_factory=list)
    failures: int = 0


def _without(sent: list[UsageEvent], unwritten: Sequence[UsageEvent]) -> list[UsageEvent]:
    if not unwritten:
        return sent
    waiting = {id(event) for event in unwritten}
    return [event for event in sent if id(event) not in waiting]
