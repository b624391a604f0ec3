"""`Listener`: serves one app on one socket, on uvicorn's protocols, and leaves in steps."""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from ratelimit.errors import RateLimitError
from ratelimit.proxy.intake import OnRefused, nobody
from ratelimit.serving.address import BACKLOG
from ratelimit.serving.connection import HttpConnection, Shared, WebSocketConnection
from ratelimit.serving.leaving import Leaving

KEEP_ALIVE_S: Final = 75
_MAX_MESSAGE: Final = 16 * 2**20
_LOOK_AGAIN_S: Final = 0.02
_CANCELLED_S: Final = 1.0
STALLED_S: Final = 60.0
"""So long nothing of what is left is read, and a connection that closes is given up."""

logger = logging.getLogger("ratelimit.serving")


class StartFailed(RateLimitError):
    """The app's lifespan did not start. The reason is in the log."""


class Listener:
    """Has to be made within the event loop's process; the socket stays its owner's."""

    def __init__(self, app: ASGIApp, listening: socket.socket, *, refused: OnRefused = nobody) -> None:
        self._config = uvicorn.Config(
            app,
            http=HttpConnection,
            ws=WebSocketConnection,
            ws_max_size=_MAX_MESSAGE,
            lifespan="on",
            # Who the client is, is for the middleware to say: it knows which proxies are trusted.
            proxy_headers=False,
            server_header=False,
            date_header=False,
            access_log=False,
            log_config=None,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        self._config.load()
        self._lifespan = self._config.lifespan_class(self._config)
        self._listening = listening
        self._shared = Shared(refused)
        self._server: asyncio.Server | None = None
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Serve. Raises `StartFailed`."""
        await self._lifespan.startup()
        if self._lifespan.should_exit:
            raise StartFailed("the app did not start")
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._connection, sock=self._listening, backlog=BACKLOG)
        self._watch = loop.create_task(self._give_up_stalled())

    async def leave(self, *, linger: float, grace: float) -> None:
        """Clients are told to leave by what they are answered; connections that are idle for `linger` seconds close;
        what runs is cut off after `grace` seconds.

        It accepts for half as long again as newcomers are let in, as there may be a queue, or handshakes on their way.
        """
        accepts = 1.5 * Leaving(linger=linger, grace=grace).accepts
        loop = asyncio.get_running_loop()
        since = loop.time()
        self._shared.leaving = True
        while (now := loop.time()) < since + grace:
            for connection in self._shared.all():
                connection.leave(now, linger)
            if now >= since + accepts:
                await self._stop_accepting()
            if self._server is None and not self._busy():
                return
            await asyncio.sleep(_LOOK_AGAIN_S)
        await self._stop_accepting()
        await self._cut_off()

    async def stop(self) -> None:
        """End the app's lifespan."""
        if self._watch is not None:
            self._watch.cancel()
        await self._lifespan.shutdown()

    def _connection(self) -> HttpConnection:
        return HttpConnection(config=self._config, server_state=self._shared, app_state=self._lifespan.state)

    async def _stop_accepting(self) -> None:
        """asyncio's server would lose, unclosed, what it accepted a turn of its loop before (python/cpython#109564)."""
        if self._server is not None:
            with suppress(NotImplementedError):  # of the loop on Windows, which loses nothing
                asyncio.get_running_loop().remove_reader(self._listening)
            await asyncio.sleep(_LOOK_AGAIN_S)
            self._server.close()
            self._server = None

    def _busy(self) -> bool:
        return bool(self._shared.connections or self._shared.tasks)

    async def _cut_off(self) -> None:
        """What is still there after the grace."""
        if tasks := set(self._shared.tasks):
            logger.warning("%d requests were not finished in time and are cut off", len(tasks))
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=_CANCELLED_S)
        for connection in self._shared.all():
            connection.transport.abort()

    async def _give_up_stalled(self) -> None:
        """Closing waits until everything is read, and who reads nothing would keep the connection, and whatever is
        behind it, for ever."""
        before: dict[asyncio.Transport, int] = {}
        while True:
            await asyncio.sleep(STALLED_S)
            closing = [each.transport for each in self._shared.all() if each.transport.is_closing()]
            left = {transport: transport.get_write_buffer_size() for transport in closing}
            for transport in closing:
                if left[transport] == before.get(transport):
                    transport.abort()
            before = left
