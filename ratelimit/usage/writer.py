"""`Writer`: a queue, and a few flights of up to 25 events each, that do not end before the table has them."""

from __future__ import annotations

import asyncio
import logging
import random as _random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, TypeAlias

from ratelimit.errors import StoreRefused, StoreUnavailable
from ratelimit.event import UsageEvent
from ratelimit.store.base import MAX_EVENTS_PER_PUT, EventStore
from ratelimit.usage.options import UsageStats

Sleep: TypeAlias = Callable[[float], Awaitable[object]]
Random: TypeAlias = Callable[[], float]

logger = logging.getLogger("ratelimit")

_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 5.0
# Far beyond any answer: it only keeps a flight from waiting for ever.
_PUT_DEADLINE: Final = 15.0
_WORTH_SAYING: Final = 5


class Writer:
    """Belongs to one event loop. `over` hears of every event that is in the table, in the order of arrival there, and
    of those that never will be.

    An event goes out when 25 wait, or `flush_interval` seconds after it came. A store that fails is tried again after
    a pause with full jitter (AWS Architecture Blog, "Exponential Backoff And Jitter"), of at most 5 seconds, for as
    long as it takes. A batch that it calls invalid is sent in parts; an event that it refuses alone, while it takes
    others, is dropped.
    """

    def __init__(
        self,
        store: EventStore,
        stats: UsageStats,
        *,
        max_queue: int,
        flush_interval: float,
        in_flight: int,
        over: Callable[[Sequence[UsageEvent]], None],
        sleep: Sleep = asyncio.sleep,
        random: Random = _random.random,
    ) -> None:
        self._store = store
        self._stats = stats
        self._max_queue = max_queue
        self._flush_interval = flush_interval
        self._in_flight = in_flight
        self._over = over
        self._sleep = sleep
        self._random = random
        self._queue: deque[UsageEvent] = deque()
        self._added = 0
        # Without a task: somebody who cancels all tasks has ended it, and `hurry` begins again.
        self._flights: dict[_Flight, asyncio.Task[None] | None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due = False
        self._failing: _Flight | None = None
        self._changed = asyncio.Event()
        self.stopped = False

    @property
    def depth(self) -> int:
        """Events that wait."""
        return len(self._queue)

    @property
    def underway(self) -> int:
        """Events on their way."""
        return sum(len(flight.left) for flight in self._flights)

    @property
    def is_failing(self) -> bool:
        """Whether the store has not taken anything for a while."""
        return self._failing is not None

    @property
    def room(self) -> int:
        """How many more may be added."""
        return self._max_queue - len(self._queue)

    def add(self, event: UsageEvent) -> None:
        """Take an event over. The caller has looked for `room`."""
        self._queue.append(event)
        self._added += 1
        if len(self._queue) >= MAX_EVENTS_PER_PUT:
            self._launch()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._flush_interval, self.hurry)

    async def changed(self, *, or_after: float | None = None) -> None:
        """Returns when events have left the queue, or reached the table, or after so many seconds."""
        self._changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(or_after):
                await self._changed.wait()

    async def flush(self, *, patient: bool = True) -> None:
        """Returns when all that was added before is in the table; without patience, also when the store is failing.

        Raises `StoreUnavailable` when stopped meanwhile.
        """
        target = self._added
        while self._oldest() <= target and (patient or not self.is_failing):
            self.hurry()
            await self.changed()
            if self.stopped:
                raise StoreUnavailable("the usage log was closed before everything was in the table")

    def stop(self) -> list[UsageEvent]:
        """Give up; what is not known to be in the table. The flights end a little later: see `landed`."""
        self.stopped = True
        self._cancel_timer()
        left = [event for flight in self._flights for event in flight.left] + list(self._queue)
        self._queue.clear()
        for flight, task in self._flights.items():
            flight.left = []
            if task is not None:
                task.cancel()
        self._changed.set()
        return left

    def abandon(self) -> list[UsageEvent]:
        """What is not known to be in the table, when the event loop is gone and nothing of it can be waited for."""
        self.stopped = True
        left = [event for flight in self._flights for event in flight.left] + list(self._queue)
        for flight in self._flights:
            flight.left = []
        self._flights.clear()
        self._queue.clear()
        return left

    async def landed(self) -> None:
        """Returns when no flight is under way any more."""
        await asyncio.gather(*filter(None, self._flights.values()), return_exceptions=True)

    def _oldest(self) -> int:
        """The number of the oldest event that is not in the table yet, the first one ever being 1."""
        waiting = self._added - len(self._queue) + 1
        return min((flight.first for flight in self._flights), default=waiting)

    def hurry(self) -> None:
        """Send what waits, even if it makes no full batch."""
        self._cancel_timer()
        self._due = True
        for flight, task in list(self._flights.items()):
            if task is None and not self.stopped:
                self._start(flight)
        self._launch()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _launch(self) -> None:
        """Send what is due, as far as flights are free; what is not due yet has its time set."""
        while self._queue and len(self._flights) < self._in_flight:
            if len(self._queue) < MAX_EVENTS_PER_PUT and not self._due:
                break
            first = self._added - len(self._queue) + 1
            batch = [self._queue.popleft() for _ in range(min(MAX_EVENTS_PER_PUT, len(self._queue)))]
            self._start(_Flight(first, batch, self._stats.written))
            self._changed.set()
        if not self._queue:
            self._due = False
        elif not self._due:
            self._hurry_later()

    def _hurry_later(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._flush_interval, self.hurry)

    def _start(self, flight: _Flight) -> None:
        task = self._flights[flight] = asyncio.get_running_loop().create_task(self._fly(flight))
        task.add_done_callback(partial(self._landed, flight))

    def _landed(self, flight: _Flight, task: asyncio.Task[None]) -> None:
        self._changed.set()
        if task.cancelled() and not self.stopped:
            self._flights[flight] = None
            self._hurry_later()
            return
        self._flights.pop(flight, None)
        if self._failing is flight:
            self._failing = None
        if not task.cancelled() and (error := task.exception()):
            self._stats.dropped += len(flight.left)
            logger.error("a bug lost %d usage events", len(flight.left), exc_info=error)
        self._launch()

    async def _fly(self, flight: _Flight) -> None:
        """Put the batch, and again what is left of it, until nothing is."""
        attempt = 0
        while True:
            flight.error, flight.refused = None, []
            unwritten = await self._put(flight, flight.left)
            done = _without(flight.left, unwritten)
            flight.left = list(unwritten)
            if done:
                self._stats.written += len(done)
                self._over(done)
            if flight.refused:
                self._drop_refused(flight)
            self._report(flight)
            if not flight.left:
                return
            attempt = max(1, attempt - 1) if done else attempt + 1
            self._stats.retried += len(flight.left)
            await self._sleep(self._random() * min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(attempt, 10)))

    async def _put(self, flight: _Flight, events: list[UsageEvent]) -> Sequence[UsageEvent]:
        """Those that the store did not take; all of them where it gave no answer."""
        takes_others = self._stats.written > flight.since
        try:
            async with asyncio.timeout(_PUT_DEADLINE):
                return await self._store.put(events)
        except StoreRefused as error:
            if len(events) > 1:
                middle = len(events) // 2
                return [*await self._put(flight, events[:middle]), *await self._put(flight, events[middle:])]
            if takes_others:  # or what it holds against all of them may be mended yet
                flight.refused += events
            flight.error = error
        except (StoreUnavailable, TimeoutError) as error:
            flight.error = error
        return events

    def _drop_refused(self, flight: _Flight) -> None:
        for event in flight.refused:
            logger.error("the store refuses the usage event %r, and it is lost: %s", event.id, flight.error)
        self._stats.dropped += len(flight.refused)
        flight.left = _without(flight.left, flight.refused)
        self._over(flight.refused)

    def _report(self, flight: _Flight) -> None:
        """Say that events wait, once while it lasts; a flight that is held up is not to go unseen among others."""
        if flight.error is not None:
            flight.failures += 1
            if flight.failures >= _WORTH_SAYING and self._failing is None:
                self._failing = flight
                self._changed.set()
                why = str(flight.error) or "no answer in time"
                logger.warning("usage events wait, the store does not take them: %s", why)
        else:
            flight.failures = 0
        if self._failing is flight and (flight.error is None or not flight.left):
            self._failing = None
            logger.warning("the store takes usage events again")


class _Flight:
    """A batch on its way: the number of its first event, and what is not in the table yet."""

    __slots__ = ("error", "failures", "first", "left", "refused", "since")

    def __init__(self, first: int, left: list[UsageEvent], since: int) -> None:
        self.first = first
        self.left = left
        self.since = since
        """How many events the log had written as it began."""
        self.error: Exception | None = None
        self.refused: list[UsageEvent] = []
        self.failures = 0


def _without(sent: list[UsageEvent], unwritten: Sequence[UsageEvent]) -> list[UsageEvent]:
    if not unwritten:
        return sent
    waiting = {id(event) for event in unwritten}
    return [event for event in sent if id(event) not in waiting]
