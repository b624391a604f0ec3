"""`Cache`: answers read once and kept for a short life, also that there is nothing; one flight per key.

A read is a task of its own. Whoever needs its answer waits for it, for as long as the caller can, and may be cancelled
without harm to the others; the task ends by its own deadline.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from functools import partial
from typing import Generic, NamedTuple, TypeVar

from ratelimit.breaker import Breaker
from ratelimit.clock import Clock
from ratelimit.directory.stats import DirectoryStats
from ratelimit.errors import StoreThrottled, StoreUnavailable
from ratelimit.store.directory import UnreadableEntry

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

logger = logging.getLogger("ratelimit")


class Terms(NamedTuple):
    """What the caches of one directory have in common."""

    clock: Clock
    life: int
    """Microseconds that an answer is good for, counted from when it was asked for."""
    deadline: float
    """Seconds that a read may take."""
    breaker: Breaker
    stats: DirectoryStats


class Cache(Generic[K, V]):
    """At most `most` answers of `read`, the most recently used ones."""

    __slots__ = ("_answers", "_flights", "_most", "_read", "_terms")

    def __init__(self, read: Callable[[K], Awaitable[V]], terms: Terms, *, most: int) -> None:
        self._read = read
        self._terms = terms
        self._most = most
        self._answers: OrderedDict[K, tuple[int, V]] = OrderedDict()
        self._flights: dict[K, asyncio.Task[V]] = {}

    async def get(self, key: K, *, by: float | None = None) -> V:
        """The answer for this key; an old one where the store gives none before `by`, a time of the event loop.

        Raises `StoreUnavailable` where there is no old one either.
        """
        now = self._terms.clock.now()
        found = self._answers.get(key)
        if found is not None and 0 <= now - found[0] < self._terms.life:
            self._answers.move_to_end(key)
            self._terms.stats.hits += 1
            return found[1]
        try:
            return await self._wait(self._flight(key, now), by)
        except StoreUnavailable:
            if found is None:
                raise
            self._terms.stats.stale += 1
            return found[1]

    def forget(self, key: K) -> None:
        """What is known is known no more, and what a read under way will bring is not kept."""
        self._answers.pop(key, None)
        self._flights.pop(key, None)

    def __len__(self) -> int:
        return len(self._answers)

    def _flight(self, key: K, now: int) -> asyncio.Task[V]:
        stats = self._terms.stats
        flight = self._flights.get(key)
        if flight is not None:
            stats.shared += 1
            return flight
        if not self._terms.breaker.admits(now):
            stats.spared += 1
            raise StoreUnavailable("users and plans could not be read repeatedly; it will be tried again in a while")
        flight = self._flights[key] = asyncio.create_task(self._fly(key, now))
        flight.add_done_callback(partial(self._landed, key, now))
        return flight

    async def _wait(self, flight: asyncio.Task[V], by: float | None) -> V:
        """Not `wait_for`, which would end the flight for all."""
        left = None if by is None else max(0.0, by - asyncio.get_running_loop().time())
        await asyncio.wait((flight,), timeout=left)
        if not flight.done():
            self._terms.stats.late += 1
            raise StoreUnavailable("users and plans could not be read in time")
        if flight.cancelled():
            raise StoreUnavailable("users and plans could not be read: the event loop is closing")
        return flight.result()

    async def _fly(self, key: K, now: int) -> V:
        terms = self._terms
        terms.stats.reads += 1
        try:
            async with asyncio.timeout(terms.deadline):
                value = await self._read(key)
        except TimeoutError as error:
            late = StoreUnavailable(f"users and plans could not be read within {terms.deadline} s")
            self._failed(late, now)
            raise late from error
        except (StoreThrottled, UnreadableEntry):  # one key's trouble
            terms.stats.failures += 1
            terms.breaker.succeeded()
            raise
        except StoreUnavailable as error:
            self._failed(error, now)
            raise
        except BaseException:
            terms.breaker.abandoned()
            raise
        if terms.breaker.succeeded():
            logger.warning("users and plans can be read again")
        return value

    def _failed(self, error: StoreUnavailable, now: int) -> None:
        self._terms.stats.failures += 1
        if self._terms.breaker.failed(now):
            logger.warning("users and plans cannot be read, what was known before holds: %s", error)

    def _landed(self, key: K, asked_at: int, flight: asyncio.Task[V]) -> None:
        wanted = self._flights.get(key) is flight
        if wanted:
            del self._flights[key]
        # Asking for the exception also tells asyncio that nobody needs to hear of it, should all have gone.
        if flight.cancelled() or flight.exception() is not None or not wanted:
            return
        self._answers[key] = (asked_at, flight.result())
        self._answers.move_to_end(key)
        if len(self._answers) > self._most:
            _, (read_at, _) = self._answers.popitem(last=False)
            self._terms.stats.evicted += asked_at - read_at < self._terms.life
