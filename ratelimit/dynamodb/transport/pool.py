"""`Pool`: a bounded number of wires. The one used last goes first, so that those too many fall idle and are closed.

A wire is connected by a task of the pool, never by the caller who needed it: a check that is out of patience leaves the
handshake going, and the next one finds it done.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from ratelimit.dynamodb.errors import StoreUnreachable
from ratelimit.dynamodb.stats import Stats
from ratelimit.dynamodb.transport.boto import elapsed
from ratelimit.dynamodb.transport.connection import Connection, Ending
from ratelimit.errors import StoreUnavailable

Connect: TypeAlias = Callable[[Callable[[Connection, Ending], None]], Awaitable[Connection]]

MAX_IDLE: Final = 10.0
"""Seconds. aiobotocore gives its connections 12, since Amazon's servers close theirs after 20 and more; whoever closes
first must be the client, or a request meets a connection that has just gone."""

_LONGEST_TICK: Final = 1.0
_FAREWELL: Final = 1.0
_TRIES: Final = 3


class Pool:
    """At most `size` wires. Belongs to one event loop.

    `patience`  seconds that a caller waits for a wire.
    `overdue`   seconds until an answer is given up (and up to a quarter more: one timer serves all wires).
    """

    def __init__(
        self, connect: Connect, stats: Stats, *, size: int, patience: float, overdue: float, max_idle: float = MAX_IDLE
    ) -> None:
        self._connect = connect
        self._stats = stats
        self._size = size
        self._patience = patience
        self._overdue = overdue
        self._max_idle = max_idle
        self._loop = asyncio.get_running_loop()
        self._wires: set[Connection] = set()
        self._idle: list[Connection] = []
        self._waiting: deque[asyncio.Future[Connection]] = deque()
        self._connecting: set[asyncio.Task[Connection]] = set()
        self._closed = False
        self._every = min(overdue / 4, max_idle / 4, _LONGEST_TICK)
        self._tick: asyncio.TimerHandle | None = None
        self._ticked = 0.0

    def take(self, now: float) -> Connection | None:
        """The idle wire used last; None where there is none, and `wait` is needed. What died, or was idle for too
        long, while nobody looked is let go of."""
        while self._idle:
            wire = self._idle.pop()
            if now - wire.since >= self._max_idle:
                wire.end("idle")
            elif wire.is_alive(now):
                return wire
            else:
                wire.end("closed")
        return None

    def end_idle(self) -> None:
        """End every wire that is idle: one of them turned out to be dead."""
        while self._idle:
            self._idle.pop().end("closed")

    async def wait(self) -> Connection:
        """A wire, as soon as one is connected or let go. Raises `StoreUnreachable`; nothing was sent."""
        for _ in range(_TRIES):
            wire = await self._queue()
            if wire.usable:  # and did not end between being handed over and being taken
                return wire
        raise StoreUnreachable("connections end as soon as they are made")

    async def _queue(self) -> Connection:
        if self._closed:
            raise StoreUnreachable("the store was closed")
        place: asyncio.Future[Connection] = self._loop.create_future()
        self._waiting.append(place)
        self._fill()
        timer = self._loop.call_later(self._patience, self._give_up, place)
        try:
            return await place
        except BaseException:
            self._leave(place)
            raise
        finally:
            timer.cancel()

    def release(self, wire: Connection, now: float) -> None:
        """Give back a wire that has no request under way."""
        if not wire.usable:
            return
        wire.since = now
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(wire)
                return
        self._idle.append(wire)

    async def warm(self, number: int) -> None:
        """Connect so many wires in advance, as far as that works out."""
        while len(self._wires) + len(self._connecting) < min(number, self._size):
            self._start()
        if self._connecting:
            await asyncio.wait(set(self._connecting))

    async def close(self) -> None:
        """End every wire and every wait; those with a request under way fail."""
        self._closed = True
        if self._tick is not None:
            self._tick.cancel()
        connecting, wires = set(self._connecting), set(self._wires)
        for task in connecting:
            task.cancel()
        for wire in wires:
            wire.end("shutdown")
        self._fail_all(StoreUnreachable("the store was closed"))
        if connecting:
            await asyncio.wait(connecting)
        if wires:
            await asyncio.wait([wire.gone for wire in wires], timeout=_FAREWELL)

    def __len__(self) -> int:
        return len(self._wires)

    def sweep(self, now: float) -> None:
        """End what is overdue or has been idle for too long."""
        for wire in list(self._wires):
            if wire.busy and now - wire.since >= self._overdue:
                wire.expire()
        # The longest idle stand first.
        while self._idle and now - self._idle[0].since >= self._max_idle:
            self._idle.pop(0).end("idle")

    def _fill(self) -> None:
        """Whoever waits has a wire on its way, as long as there may be more of them."""
        room = self._size - len(self._wires) - len(self._connecting)
        for _ in range(min(room, len(self._waiting) - len(self._connecting))):
            self._start()

    def _start(self) -> None:
        task = self._loop.create_task(self._open())
        self._connecting.add(task)
        task.add_done_callback(self._connected)
        if self._tick is None:
            self._ticked = elapsed()
            self._tick = self._loop.call_later(self._every, self._on_tick)

    async def _open(self) -> Connection:
        return await self._connect(self._lost)

    def _connected(self, task: asyncio.Task[Connection]) -> None:
        self._connecting.discard(task)
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            self._stats.drop("unreachable")
            self._fail_one(error)
            self._fill()
            return
        wire = task.result()
        if self._closed:
            wire.end("shutdown")
            return
        if not wire.usable:
            self._fail_one(StoreUnreachable("the connection was closed as soon as it was made"))
            self._fill()
            return
        self._wires.add(wire)
        self._stats.connections += 1
        self.release(wire, elapsed())

    def _lost(self, wire: Connection, ending: Ending) -> None:
        self._stats.drop(ending)
        self._wires.discard(wire)
        if wire in self._idle:
            self._idle.remove(wire)
        if not self._closed:
            self._fill()

    def _give_up(self, place: asyncio.Future[Connection]) -> None:
        if not place.done():
            self._stats.drop("no_connection")
            place.set_exception(
                StoreUnreachable(f"waited in vain for one of {self._size} connections; raise pool, or ask for less")
            )

    def _leave(self, place: asyncio.Future[Connection]) -> None:
        if place in self._waiting:
            self._waiting.remove(place)
        elif place.done() and not place.cancelled() and place.exception() is None:
            self.release(place.result(), elapsed())

    def _fail_one(self, error: BaseException) -> None:
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_exception(error)
                return

    def _fail_all(self, error: StoreUnavailable) -> None:
        while self._waiting:
            self._fail_one(error)

    def _on_tick(self) -> None:
        now = elapsed()
        late = now - self._ticked >= 2 * self._every
        self._ticked = now
        # Where the loop stood still, answers that came meanwhile have not been read yet: they are in time.
        self._tick = self._loop.call_later(0 if late else self._every, self._on_tick)
        if not late:
            self.sweep(now)
