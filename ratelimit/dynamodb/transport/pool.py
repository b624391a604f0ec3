"""A bounded number of connections: `Pool` of an event loop, `ThreadPool`. The one used last goes first, so that those
too many fall idle and end.

On an event loop a connection is made by a task of the pool, never by the caller who needed it: a check that is out of
time leaves the handshake going, and the next one finds it done.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, TypeAlias

from ratelimit.blocking_wait import wait_for
from ratelimit.dynamodb.calls import Stats
from ratelimit.dynamodb.errors import Place, StoreUnreachable
from ratelimit.dynamodb.transport.connection import (
    CLOSE_LOOK_S,
    Connection,
    Ending,
    Endpoint,
    ThreadConnection,
    dial,
    elapsed,
    not_connected,
)
from ratelimit.errors import StoreUnavailable

Connect: TypeAlias = Callable[[Callable[[Connection, Ending], None]], Awaitable[Connection]]

MAX_IDLE_S: Final = 10.0
"""aiobotocore gives its connections 12, since Amazon's servers close theirs after 20 and more; whoever closes
first must be the client, or a request meets a connection that has just gone."""

_MAX_TICK_S: Final = 1.0
_CLOSE_TIMEOUT_S: Final = 1.0
_MAX_TAKES: Final = 3


class BasePool:
    """At most `size` connections, whoever waits for them and for their answers: an event loop, or threads.

    `wait_timeout`    seconds that a caller waits for a connection.
    `answer_timeout`  seconds until an answer is given up.
    """

    def __init__(self, stats: Stats, *, size: int, wait_timeout: float, answer_timeout: float) -> None:
        self._stats = stats
        self._size = size
        self._wait_timeout = wait_timeout
        self._answer_timeout = answer_timeout
        self._idle: list[Connection] = []
        self._connections: set[Connection] = set()
        self._waiting: deque[Any] = deque()
        self._closed = False

    def take(self, now: float) -> Connection | None:
        """Return the idle connection used last; None where there is none, and `wait` is needed. Let go of what died, or
        was idle for too long, while nobody looked."""
        while self._idle:
            connection = self._idle.pop()
            idle = now - connection.since
            if idle < CLOSE_LOOK_S and connection.usable:
                return connection
            if idle >= MAX_IDLE_S:
                connection.end("idle")
            elif connection.usable and connection.is_quiet():
                return connection
            else:
                connection.end("closed")
        return None

    def end_idle(self) -> None:
        """End every connection that is idle: one of them turned out to be dead."""
        while self._idle:
            self._idle.pop().end("closed")

    async def wait(self) -> Connection:
        """Return a connection as soon as one is made or given back. Raise `StoreUnreachable`; nothing was sent."""
        raise NotImplementedError

    def release(self, connection: Connection, now: float) -> None:
        """Give back a connection that has no request under way."""
        if not connection.usable:
            return
        connection.since = now
        if not self._waiting or not self._hand_over(connection):
            self._idle.append(connection)

    async def warm(self, number: int) -> None:
        """Connect so many connections in advance, as far as that works out."""
        raise NotImplementedError

    async def close(self) -> None:
        """End every connection and every wait; those with a request under way fail."""
        raise NotImplementedError

    def _hand_over(self, connection: Connection) -> bool:
        """Give the connection to who has waited longest. Return whether anybody has."""
        raise NotImplementedError

    def _make_room(self) -> None:
        """See that whoever waits gets another one: there may be one more."""
        raise NotImplementedError

    def _lost(self, connection: Connection, ending: Ending) -> None:
        self._stats.dropped[ending] += 1
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._make_room()

    def _in_vain(self) -> StoreUnreachable:
        self._stats.dropped["no_connection"] += 1
        return StoreUnreachable(f"waited in vain for one of {self._size} connections; raise pool, or ask for less")


class Pool(BasePool):
    """That of one event loop. (An answer may be given up as much as a quarter later: one timer serves all.)"""

    def __init__(
        self, connect: Connect, stats: Stats, *, size: int, wait_timeout: float, answer_timeout: float
    ) -> None:
        super().__init__(stats, size=size, wait_timeout=wait_timeout, answer_timeout=answer_timeout)
        self._connect = connect
        self._loop = asyncio.get_running_loop()
        self._connecting: set[asyncio.Task[Connection]] = set()
        self._every = min(answer_timeout / 4, MAX_IDLE_S / 4, _MAX_TICK_S)
        self._tick: asyncio.TimerHandle | None = None
        self._ticked = 0.0

    async def wait(self) -> Connection:
        for _ in range(_MAX_TAKES):
            connection = await self._queue()
            if connection.usable:  # and did not end between being handed over and being taken
                return connection
        raise StoreUnreachable("connections end as soon as they are made")

    async def _queue(self) -> Connection:
        if self._closed:
            raise StoreUnreachable("the store was closed")
        place: asyncio.Future[Connection] = self._loop.create_future()
        self._waiting.append(place)
        self._fill()
        timer = self._loop.call_later(self._wait_timeout, self._give_up, place)
        try:
            return await place
        except BaseException:
            self._leave(place)
            raise
        finally:
            timer.cancel()

    async def warm(self, number: int) -> None:
        while len(self._connections) + len(self._connecting) < min(number, self._size):
            self._start()
        if self._connecting:
            await asyncio.wait(set(self._connecting))

    async def close(self) -> None:
        self._closed = True
        if self._tick is not None:
            self._tick.cancel()
        connecting, connections = set(self._connecting), set(self._connections)
        for task in connecting:
            task.cancel()
        for connection in connections:
            connection.end("shutdown")
        self._fail_all(StoreUnreachable("the store was closed"))
        if connecting:
            await asyncio.wait(connecting)
        if connections:
            gone = [connection.gone for connection in connections if connection.gone is not None]
            await asyncio.wait(gone, timeout=_CLOSE_TIMEOUT_S)

    def __len__(self) -> int:
        return len(self._connections)

    def sweep(self, now: float) -> None:
        """End what is overdue or has been idle for too long."""
        for connection in list(self._connections):
            if connection.busy and now - connection.since >= self._answer_timeout:
                connection.expire()
        # The longest idle stand first.
        while self._idle and now - self._idle[0].since >= MAX_IDLE_S:
            self._idle.pop(0).end("idle")

    def _hand_over(self, connection: Connection) -> bool:
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(connection)
                return True
        return False

    def _make_room(self) -> None:
        if not self._closed:
            self._fill()

    def _fill(self) -> None:
        """See that whoever waits has a connection on its way, as long as there may be more of them."""
        room = self._size - len(self._connections) - len(self._connecting)
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
            self._stats.dropped["unreachable"] += 1
            self._fail_one(error)
            self._fill()
            return
        connection = task.result()
        if self._closed:
            connection.end("shutdown")
            return
        if not connection.usable:
            self._fail_one(StoreUnreachable("the connection was closed as soon as it was made"))
            self._fill()
            return
        self._connections.add(connection)
        self._stats.connections += 1
        self.release(connection, elapsed())

    def _give_up(self, place: asyncio.Future[Connection]) -> None:
        if not place.done():
            place.set_exception(self._in_vain())

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


class ThreadPool(BasePool):
    """That of threads: each makes the connection that it needs, and waits no longer for that than for one of others.

    Run by a `Runner`, whose lock is let go of only while a thread waits.
    """

    def __init__(
        self, endpoint: Endpoint, place: Place, stats: Stats, *, size: int, wait_timeout: float, answer_timeout: float
    ) -> None:
        super().__init__(stats, size=size, wait_timeout=wait_timeout, answer_timeout=answer_timeout)
        self._endpoint = endpoint
        self._place = place
        self._connecting = 0

    async def wait(self) -> Connection:
        if self._closed:
            raise StoreUnreachable("the store was closed")
        if len(self._connections) + self._connecting < self._size:
            return await self._connect()
        place = _ThreadPlace(self._wait_timeout)
        self._waiting.append(place)
        try:
            wait_for(place.wait)
        except TimeoutError:
            if not place.is_called:
                self._waiting.remove(place)
                raise self._in_vain() from None
        except BaseException:
            self._leave(place)
            raise
        if place.connection is not None and place.connection.usable:
            return place.connection
        return await self.wait()

    async def warm(self, number: int) -> None:
        """Connect one of them: others are made when threads want them at once."""
        self.release(await self._connect(), elapsed())

    async def close(self) -> None:
        self._closed = True
        for connection in list(self._connections):
            connection.end("shutdown")
        while self._call_next(None):
            pass

    def forget(self) -> None:
        """Leave all to the process that this one was forked from."""
        self._idle.clear()
        self._connections.clear()
        self._waiting.clear()
        self._connecting = 0

    async def _connect(self) -> Connection:
        self._connecting += 1
        try:
            connected = wait_for(partial(dial, self._endpoint, self._wait_timeout))
        except OSError as error:  # also TimeoutError, and that of the name's resolution
            self._stats.dropped["unreachable"] += 1
            self._call_next(None)
            raise not_connected(error, self._endpoint, self._place) from error
        finally:
            self._connecting -= 1
        connection = ThreadConnection(self._endpoint, connected, self._lost, self._answer_timeout)
        connection.since = elapsed()
        self._connections.add(connection)
        self._stats.connections += 1
        return connection

    def _hand_over(self, connection: Connection) -> bool:
        return self._call_next(connection)

    def _make_room(self) -> None:
        self._call_next(None)

    def _call_next(self, connection: Connection | None) -> bool:
        """Hand over a connection, or the room to make one, to who has waited longest. Return whether anybody has."""
        if not self._waiting:
            return False
        place = self._waiting.popleft()
        place.connection = connection
        place.call()
        return True

    def _leave(self, place: _ThreadPlace) -> None:
        if not place.is_called:
            self._waiting.remove(place)
        elif place.connection is not None:
            self.release(place.connection, elapsed())
        else:
            self._call_next(None)


class _ThreadPlace:
    """One thread's place among those that wait."""

    __slots__ = ("_called", "connection", "is_called", "timeout")

    def __init__(self, timeout: float) -> None:
        self._called = threading.Event()
        self.connection: Connection | None = None
        self.is_called = False
        self.timeout = timeout

    def call(self) -> None:
        self.is_called = True
        self._called.set()

    def wait(self, left: float) -> None:
        if not self._called.wait(min(self.timeout, left)):
            raise TimeoutError
