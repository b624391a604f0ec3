"""Connections that threads ask by themselves, without an event loop, and their pool.

A connection is what it is on an event loop, but for who reads its socket. Everything here is run by a `Runner`: its
lock is let go of only while a thread waits for a socket, or for a connection.
"""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any, Final, cast

from botocore import exceptions as aws

from ratelimit.blocking_wait import BlockingCall, wait_for
from ratelimit.dynamodb.calls import Stats
from ratelimit.dynamodb.errors import Place, StoreUnreachable, explain
from ratelimit.dynamodb.transport.connection import (
    Connection,
    Ending,
    Endpoint,
    Response,
    elapsed,
    new_socket,
    unshared,
)
from ratelimit.dynamodb.transport.pool import MAX_IDLE_S, IdleConnections
from ratelimit.dynamodb.transport.signing import CredentialsCache

_READ_BYTES: Final = 1 << 16


class ThreadConnection(Connection):
    """A connection whose answer is read by the thread that waits for it."""

    def __init__(
        self, endpoint: Endpoint, connected: socket.socket, ended: Callable[[Connection, Ending], None], timeout: float
    ) -> None:
        super().__init__(endpoint.url, ended, connected)
        self._socket = connected
        self._timeout = timeout
        self._request = b""
        self._response: Response | None = None
        self._error: Exception | None = None
        self._transport = cast(asyncio.Transport, _Closing(self._close))
        self.usable = True

    def is_quiet(self) -> bool:
        """Return whether nothing has come on an idle one but TLS's own, as the tickets after a handshake."""
        if super().is_quiet():
            return True
        if not isinstance(self._socket, ssl.SSLSocket):
            return False
        try:
            self._socket.recv(1)
        except ssl.SSLWantReadError:
            return True
        except OSError:
            return False
        return False

    def ask(self, request: bytes, now: float) -> Response:
        """Send a request; only while `usable`. Return the answer, or raise one of `boto_errors`."""
        self._begin(now)
        self._request = request
        step: BlockingCall[bytes] = self._exchange
        try:
            while self.busy and self.usable:
                if data := wait_for(step):
                    self.data_received(data)
                else:
                    self.eof_received()
                step = self._receive
        except TimeoutError:
            self.expire()
        except OSError as error:
            self.connection_lost(error)
        finally:
            self.busy = False
            if not self.usable:
                self._socket.close()
        response, self._response = self._response, None
        if response is None:
            assert self._error is not None
            raise self._error
        return response

    def _deliver(self, response: Response) -> None:
        self._response = response

    def _fail(self, error: Exception) -> None:
        self._error = self._error or error

    def _exchange(self, left: float) -> bytes:
        """Send, and return what comes: at the first attempt, as is almost always possible."""
        request, sent = self._request, 0
        try:
            sent = self._socket.send(request)
            if sent == len(request):
                # (Rounded up to a millisecond, so that the time is over when it says so.)
                if not self._poll(1000 * (left if left < self._timeout else self._timeout)):
                    raise TimeoutError
                return self._socket.recv(_READ_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        due = self.since + left
        while sent < len(request):
            self._wait_to_write(due)
            with suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                sent += self._socket.send(request[sent:])
        return self._receive(due - elapsed())

    def _wait_to_write(self, due: float) -> None:
        left = min(due, self.since + self._timeout) - elapsed()
        if left <= 0 or not select.select([], [self._socket], [], left)[1]:
            raise TimeoutError

    def _receive(self, left: float) -> bytes:
        """Return what comes. Raise `TimeoutError` where nothing has come by then."""
        now = elapsed()
        due = min(now + left, self.since + self._timeout)
        while now < due and self._poll((due - now) * 1000):
            try:
                return self._socket.recv(_READ_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError):
                now = elapsed()
        raise TimeoutError

    def _close(self) -> None:
        """Another thread may wait for it, which closes it then: its number is not to be another's by then."""
        if not self.busy:
            self._socket.close()
            return
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


class _Closing:
    """What stands for an asyncio transport, of which a connection needs only how to end."""

    def __init__(self, abort: Callable[[], None]) -> None:
        self.abort = abort


def dial(endpoint: Endpoint, timeout: float, left: float) -> socket.socket:
    """Return a socket that is connected, to the first of the host's addresses that takes it. Raise `OSError`."""
    due = monotonic() + min(timeout, left)
    failed: OSError = TimeoutError()
    addresses = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    for number, address in enumerate(addresses):
        remaining = due - monotonic()
        if remaining <= 0:
            break
        made = new_socket(address)
        try:
            made.settimeout(remaining / (len(addresses) - number))
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made.connect(address[4])
            return _secured(endpoint, made, due)
        except OSError as error:
            made.close()
            failed = error
    raise failed


def _secured(endpoint: Endpoint, connected: socket.socket, due: float) -> socket.socket:
    if endpoint.tls is not None:
        connected.settimeout(max(0.001, due - monotonic()))
        connected = unshared(endpoint.tls.wrap_socket(connected, server_hostname=endpoint.host))
    connected.setblocking(False)
    return connected


class ThreadPool(IdleConnections):
    """At most `size` connections, each made by the thread that needs it.

    `wait_timeout` are the seconds that a thread waits for a connection, or for one to be made; `answer_timeout` those
    until an answer is given up.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        place: Place,
        stats: Stats,
        *,
        size: int,
        wait_timeout: float,
        answer_timeout: float,
        max_idle: float = MAX_IDLE_S,
    ) -> None:
        super().__init__(max_idle)
        self._endpoint = endpoint
        self._place = place
        self._stats = stats
        self._size = size
        self._wait_timeout = wait_timeout
        self._answer_timeout = answer_timeout
        self._connections: set[Connection] = set()
        self._connecting = 0
        self._waiting: deque[_Place] = deque()
        self._is_closed = False

    async def wait(self) -> Connection:
        if self._is_closed:
            raise StoreUnreachable("the store was closed")
        if len(self._connections) + self._connecting < self._size:
            return await self._connect()
        place = _Place(self._wait_timeout)
        self._waiting.append(place)
        try:
            wait_for(place.wait)
        except TimeoutError:
            if not place.is_called:
                self._waiting.remove(place)
                self._stats.dropped["no_connection"] += 1
                raise StoreUnreachable(
                    f"waited in vain for one of {self._size} connections; raise pool, or ask for less"
                ) from None
        except BaseException:
            self._leave(place)
            raise
        if place.connection is not None and place.connection.usable:
            return place.connection
        return await self.wait()

    def release(self, connection: Connection, now: float) -> None:
        if not connection.usable:
            return
        connection.since = now
        if not self._waiting or not self._call_next(connection):
            self._idle.append(connection)

    async def warm(self, number: int) -> None:
        """Connect one of them: others are made when threads want them at once."""
        self.release(await self._connect(), elapsed())

    async def close(self) -> None:
        self._is_closed = True
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
        except ssl.SSLError as error:
            self._not_connected()
            raise explain(aws.SSLError(endpoint_url=self._endpoint.url, error=error), self._place) from error
        except OSError as error:  # also TimeoutError, and that of the name's resolution
            self._not_connected()
            raise explain(aws.ConnectTimeoutError(endpoint_url=self._endpoint.url, error=error), self._place) from error
        finally:
            self._connecting -= 1
        connection = ThreadConnection(self._endpoint, connected, self._lost, self._answer_timeout)
        connection.since = elapsed()
        self._connections.add(connection)
        self._stats.connections += 1
        return connection

    def _not_connected(self) -> None:
        self._stats.dropped["unreachable"] += 1
        self._call_next(None)

    def _lost(self, connection: Connection, ending: Ending) -> None:
        self._stats.dropped[ending] += 1
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._call_next(None)

    def _call_next(self, connection: Connection | None) -> bool:
        """Hand over a connection, or the room to make one, to who has waited longest. Return whether anybody has."""
        if not self._waiting:
            return False
        place = self._waiting.popleft()
        place.connection = connection
        place.call()
        return True

    def _leave(self, place: _Place) -> None:
        if not place.is_called:
            self._waiting.remove(place)
        elif place.connection is not None:
            self.release(place.connection, elapsed())
        else:
            self._call_next(None)


class _Place:
    """One thread's place in the queue."""

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


class ThreadCredentials(CredentialsCache):
    """The credentials without an event loop: a thread refreshes them, while checks go on with those at hand."""

    def __init__(self, credentials: Any, start: Callable[[Coroutine[Any, Any, None]], Future[None]]) -> None:
        super().__init__(credentials)
        self._start_thread = start

    async def close(self) -> None:
        """Leave a refresh under way alone: nobody waits for it."""

    @property
    def is_refreshing(self) -> bool:
        """Return whether a thread is at it."""
        return self._refreshing is not None

    def _start(self, refresh: Coroutine[Any, Any, None]) -> Any:
        return self._start_thread(refresh)

    async def _wait(self, refreshing: Any) -> None:
        wait_for(refreshing.result)

    async def _ask(self) -> Any:
        return wait_for(self._ask_at_once)

    def _ask_at_once(self, left: float) -> Any:
        return self._credentials.get_frozen_credentials()
