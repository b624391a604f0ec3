"""A simulated DynamoDB table: its latency, what one item can take, and what was asked of it.

*Latency*: lognormal, median 3.5 ms (p99 14 ms, p99.9 22 ms), half of it on the way out. A request that was sent
arrives, whether or not its sender still waits. *Capacity*: an item takes 1,000 writes and 3,000 strong reads a second,
as a bucket that holds a tenth of a second's worth; beyond that it throttles, which takes a round trip and no capacity.
A refused conditional write takes a unit like any other. Throttled calls are repeated by the product's own `Retries`.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Sequence
from random import Random
from typing import Any, Final, TypeVar

from ratelimit.dynamodb.calls import BACKOFF, NOT_EXECUTED, Retries, Stats
from ratelimit.dynamodb.settings import Settings
from ratelimit.errors import StoreThrottled
from ratelimit.names import Key
from ratelimit.regions.regions import home_of
from ratelimit.store import MemoryStore, Outcome, Record, Write

WRITES_A_SECOND: Final = 1000
READS_A_SECOND: Final = 3000
BURST_SECONDS: Final = 0.1
MEDIAN_LATENCY: Final = 0.0035
SIGMA: Final = 0.6
_ATTEMPTS: Final = Settings(table="simulated").attempts

T = TypeVar("T")


class Table:
    """The one table that all processes share."""

    def __init__(self, loop: asyncio.AbstractEventLoop, random: Random) -> None:
        self.memory = MemoryStore(max_keys=10_000_000)
        self.attempted: defaultdict[Key, Counter[int]] = defaultdict(Counter)
        """Writes that arrived, throttled ones included, by item and second."""
        self.taken: defaultdict[Key, Counter[int]] = defaultdict(Counter)
        """Writes that the item took: each is one write unit."""
        self.crossings = 0
        self.throttles = 0
        self._loop = loop
        self._random = random
        self._mu = math.log(MEDIAN_LATENCY)
        self._write_room: dict[Key, _Bucket] = {}
        self._read_room: dict[Key, _Bucket] = {}

    @property
    def write_units(self) -> int:
        return sum(sum(seconds.values()) for seconds in self.taken.values())

    async def update(self, key: Key, write: Write, now: int) -> Outcome:
        """One `UpdateItem`. Raises `StoreThrottled`."""
        return await self._ask(lambda: self._write(key, write, now))

    async def get(self, key: Key) -> Record:
        """One strongly consistent `GetItem`. Raises `StoreThrottled`."""
        return await self._ask(lambda: self._read(key))

    async def _ask(self, serve: Callable[[], T]) -> T:
        one_way = self._random.lognormvariate(self._mu, SIGMA) / 2
        answer: asyncio.Future[T] = self._loop.create_future()
        self._loop.call_later(one_way, self._serve, answer, serve, one_way)
        return await answer

    def _serve(self, answer: asyncio.Future[T], serve: Callable[[], T], one_way: float) -> None:
        try:
            result = serve()
        except StoreThrottled as error:
            self.throttles += 1
            self._loop.call_later(one_way, _fail, answer, error)
        else:
            self._loop.call_later(one_way, _deliver, answer, result)

    def _write(self, key: Key, write: Write, now: int) -> Outcome:
        time = self._loop.time()
        self.attempted[key][int(time)] += 1
        if not _room(self._write_room, key, time, WRITES_A_SECOND).take(time):
            raise StoreThrottled("the item takes no more writes now")
        self.taken[key][int(time)] += 1
        return at_once(self.memory.apply(key, write, now=now))

    def _read(self, key: Key) -> Record:
        time = self._loop.time()
        if not _room(self._read_room, key, time, READS_A_SECOND).take(time):
            raise StoreThrottled("the item takes no more reads now")
        return at_once(self.memory.read(key))


class SimulatedStore:
    """One process's `Store`: its way to the shared table, with the retries that `DynamoDBStore` makes."""

    def __init__(self, table: Table, random: Random) -> None:
        self._table = table
        self.events = table.memory.events
        self._random = random
        self._retries = Retries(_ATTEMPTS, Stats(), pause=self._pause)

    async def open(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """Nothing to close."""

    async def apply(self, key: Key, write: Write, *, now: int) -> Outcome:
        return await self._retries.run("UpdateItem", lambda: self._table.update(key, write, now), on=NOT_EXECUTED)

    async def apply_all(self, writes: Sequence[tuple[Key, Write]], *, now: int) -> Sequence[Outcome]:
        raise NotImplementedError("no simulation decides about several keys at once")

    async def read_all(self, keys: Sequence[Key]) -> Sequence[Record]:
        raise NotImplementedError("no simulation decides about several keys at once")

    async def read(self, key: Key) -> Record:
        return await self._retries.run("GetItem", lambda: self._table.get(key), on=NOT_EXECUTED)

    async def delete(self, key: Key) -> None:
        """Free of charge: no simulation deletes."""
        await self._table.memory.delete(key)

    async def _pause(self, attempt: int) -> None:
        await asyncio.sleep(self._random.random() * BACKOFF.bound_s(attempt))


class RegionalStore(SimulatedStore):
    """The same in one of many regions, where the users who are at home in another one are a crossing away.

    Only what a check asks crosses: `apply`.
    """

    def __init__(self, table: Table, random: Random, *, here: int, regions: int, crossing_s: float) -> None:
        super().__init__(table, random)
        self._regions = tuple(f"region-{number}" for number in range(regions))
        self._here = self._regions[here]
        self._crossing_s = crossing_s

    async def apply(self, key: Key, write: Write, *, now: int) -> Outcome:
        if home_of(key.user, self._regions) == self._here:
            return await super().apply(key, write, now=now)
        self._table.crossings += 1
        await asyncio.sleep(self._crossing_s / 2)
        outcome = await super().apply(key, write, now=now)
        await asyncio.sleep(self._crossing_s / 2)
        return outcome


class _Bucket:
    """Room for `rate` requests a second, and for `BURST_SECONDS` of that rate at once."""

    __slots__ = ("_at", "_most", "_rate", "_room")

    def __init__(self, rate: int, time: float) -> None:
        self._rate = rate
        self._room = self._most = rate * BURST_SECONDS
        self._at = time

    def take(self, time: float) -> bool:
        self._room = min(self._most, self._room + (time - self._at) * self._rate)
        self._at = time
        if self._room < 1:
            return False
        self._room -= 1
        return True


def _room(rooms: dict[Key, _Bucket], key: Key, time: float, rate: int) -> _Bucket:
    room = rooms.get(key)
    if room is None:
        room = rooms[key] = _Bucket(rate, time)
    return room


def _deliver(answer: asyncio.Future[T], result: T) -> None:
    if not answer.done():
        answer.set_result(result)


def _fail(answer: asyncio.Future[T], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)


def at_once(call: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never waits."""
    try:
        call.send(None)
    except StopIteration as finished:
        result: T = finished.value
        return result
    raise RuntimeError("the memory store is not supposed to wait")
