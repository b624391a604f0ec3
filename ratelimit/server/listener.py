"""`Listener`: serve on one socket whatever a `Service` answers with. Draining it cuts no request that had arrived when
its connection closes."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from email.utils import formatdate
from typing import Any, Final, Protocol

from ratelimit.errors import ConfigError, RateLimitError, StoreMisconfigured
from ratelimit.http.problems import Problem
from ratelimit.otel import TraceContext
from ratelimit.server.address import BACKLOG
from ratelimit.server.connection import ClientConnection
from ratelimit.server.exchange import Exchange
from ratelimit.server.request import Request
from ratelimit.server.serve import ShutdownTimeouts

logger = logging.getLogger("ratelimit.serving")

TICK_S: Final = 0.1
"""How often it is looked whose time has come: one timer for all connections."""
_LOOK_AGAIN_S: Final = 0.02
_CUT_OFF_S: Final = 1.0


class Service(Protocol):
    """Who answers the requests of a listener."""

    async def start(self) -> None:
        """Begin. Raises `StoreMisconfigured` and `ConfigError` where it cannot."""

    async def end(self) -> None:
        """End, when all requests have."""

    def exchange(self, connection: ClientConnection, request: Request) -> Exchange:
        """Return who answers a request."""

    def over(self, exchange: Exchange) -> None:
        """Take note of one that has ended."""
        return

    def refused(self, connection: ClientConnection, request: Request, problem: Problem) -> None:
        """Take note of one that nobody could be asked for; of its head there may be nothing."""
        return


class ListenerState:
    """What the connections of one listener share."""

    def __init__(self, service: Service, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.connections: set[ClientConnection] = set()
        self.exchanges: set[Exchange] = set()
        """Requests under way."""
        self.draining = False
        self.exchange = service.exchange
        self.over = service.over
        self.refused = service.refused
        self.trace = TraceContext.current()
        self._date_line = b""
        self._date_at = 0

    def date(self) -> bytes:
        """Return the line with the date (RFC 9110, 6.6.1)."""
        now = int(time.time())
        if now != self._date_at:
            self._date_at = now
            self._date_line = b"date: " + formatdate(now, usegmt=True).encode() + b"\r\n"
        return self._date_line


class StartFailed(RateLimitError):
    """The service did not start. The reason is in the log."""


class DrainingListener:
    """Accepts connections on a socket, which stays its owner's, until it drains."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self._server: asyncio.Server | None = None

    async def drain(self, *, linger: float, grace: float) -> None:
        """Tell clients to leave by what they are answered, for `linger` seconds. What runs is cut off after `grace`.

        It accepts for half as long again as newcomers are let in, as there may be a queue, or handshakes on their way.
        """
        if not self._is_accepting():
            return
        accepts = ShutdownTimeouts(linger=linger, grace=grace).accepts
        loop = asyncio.get_running_loop()
        since = loop.time()
        while (now := loop.time()) < since + grace:
            self._tell_to_leave(now, linger)
            if now >= since + 1.5 * accepts:
                await self._stop_accepting()
            if not self._is_accepting() and not self.is_busy:
                return
            await asyncio.sleep(_LOOK_AGAIN_S)
        await self._stop_accepting()
        await self._cut_off()

    @property
    def is_busy(self) -> bool:
        """Return whether there is any connection, or request under way."""
        raise NotImplementedError

    def _is_accepting(self) -> bool:
        return self._server is not None

    def _tell_to_leave(self, now: float, linger: float) -> None:
        """Tell those who are connected that they have `linger` seconds; called again and again."""
        raise NotImplementedError

    async def _cut_off(self) -> None:
        raise NotImplementedError

    async def _accept(self, make: Callable[[], Any]) -> None:
        # Protocols are so by their methods: of no class of asyncio's, so that they can be compiled.
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(make, sock=self._listening, backlog=BACKLOG)

    async def _stop_accepting(self) -> None:
        # asyncio's server would lose, unclosed, what it accepted a turn of its loop before (python/cpython#109564).
        if self._server is not None:
            with suppress(NotImplementedError):  # of the loop on Windows, which loses nothing
                asyncio.get_running_loop().remove_reader(self._listening)
            await asyncio.sleep(_LOOK_AGAIN_S)
            self._server.close()
            self._server = None


class Listener(DrainingListener):
    """Has to be made within the event loop's process."""

    def __init__(self, service: Service, listening: socket.socket) -> None:
        super().__init__(listening)
        self._service = service
        self._shared: ListenerState | None = None
        self._tick: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Serve. Raises `StartFailed`."""
        try:
            await self._service.start()
        except (StoreMisconfigured, ConfigError) as error:
            logger.error("%s", error)
            raise StartFailed(str(error)) from error
        loop = asyncio.get_running_loop()
        self._shared = shared = ListenerState(self._service, loop)
        await self._accept(lambda: ClientConnection(shared))
        self._tick = loop.call_later(TICK_S, self._look, loop, shared)

    async def stop(self) -> None:
        if self._tick is not None:
            self._tick.cancel()
        await self._service.end()

    @property
    def is_busy(self) -> bool:
        return self._shared is not None and bool(self._shared.connections or self._shared.exchanges)

    def _tell_to_leave(self, now: float, linger: float) -> None:
        assert self._shared is not None
        self._shared.draining = True
        for connection in list(self._shared.connections):
            connection.drain(now, linger)

    async def _cut_off(self) -> None:
        assert self._shared is not None
        shared = self._shared
        if shared.exchanges:
            logger.warning("%d requests were not finished in time and are cut off", len(shared.exchanges))
        for connection in list(shared.connections):
            connection.abort()
        for exchange in list(shared.exchanges):
            exchange.cancel()
        loop = asyncio.get_running_loop()
        until = loop.time() + _CUT_OFF_S
        while self.is_busy and loop.time() < until:  # noqa: ASYNC110 (there is no event for it)
            await asyncio.sleep(_LOOK_AGAIN_S)

    def _look(self, loop: asyncio.AbstractEventLoop, shared: ListenerState) -> None:
        now = loop.time()
        for connection in [each for each in shared.connections if each.due <= now]:
            connection.expire()
        self._tick = loop.call_later(TICK_S, self._look, loop, shared)
