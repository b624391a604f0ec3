"""`Listener`: serve one app on one socket, on uvicorn's protocols. Draining it cuts no request that had arrived
when its connection closes."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from asyncio import Transport
from contextlib import suppress
from typing import Any, Final, cast

import uvicorn
from starlette.types import ASGIApp, Scope
from uvicorn._types import HTTPScope
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets import http11
from websockets.http11 import Request
from websockets.protocol import State as WebSocketState

from ratelimit.errors import RateLimitError
from ratelimit.server.address import BACKLOG
from ratelimit.server.http_protocol import MAX_HEAD, HttpProtocol, OnRefused, ignore_refusal
from ratelimit.server.problems import MALFORMED
from ratelimit.server.shutdown import ShutdownTimeouts
from ratelimit.server.upstream import TARGET_KEY

logger = logging.getLogger("ratelimit.serving")

SERVICE_RESTART: Final = 1012
KEEP_ALIVE_S: Final = 75
_MAX_MESSAGE: Final = 16 * 2**20
_LOOK_AGAIN_S: Final = 0.02
_CANCELLED_S: Final = 1.0
STALLED_S: Final = 60.0
"""So long nothing of what is left is read, and a connection that closes is given up."""

# A handshake is measured as any other request is, before `websockets` reads it: 8 KB a line, which is not much for
# cookies, and 128 fields are no limits here.
http11.MAX_LINE_LENGTH = 2 * MAX_HEAD
http11.MAX_NUM_HEADERS = MAX_HEAD


class ListenerState(ServerState):
    """What the connections of one listener share."""

    def __init__(self, refused: OnRefused) -> None:
        super().__init__()
        self.draining = False
        self.refused = refused

    def all(self) -> list[HttpConnection | WebSocketConnection]:
        """Return them as they are now."""
        return cast("list[HttpConnection | WebSocketConnection]", list(self.connections))


class HttpConnection(HttpProtocol):
    """While draining, each answer says `Connection: close`, and a connection that stays idle closes."""

    server_state: ListenerState
    scope: HTTPScope | None  # type: ignore[assignment]
    cycle: RequestResponseCycle | None  # type: ignore[assignment]

    _idle_since: float | None = None
    """As `drain` has seen it."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.server_state.draining:
            self._announce()

    def on_refused(self, scope: Scope, status: int, sent: int, span: float) -> None:
        self.server_state.refused(scope, status, sent, span)

    def drain(self, now: float, linger: float) -> None:
        """Close after `linger` idle seconds. To be called again and again."""
        if not self._idle():
            self._idle_since = None
            self._announce()
        elif self._idle_since is None:
            self._idle_since = now
        elif now - self._idle_since >= linger:
            self._close()

    def timeout_keep_alive_handler(self) -> None:
        """Close as when draining: a request that arrives in the last moment is answered. An answer that was not read in
        all this time is the last."""
        if self.transport.get_write_buffer_size():
            self.transport.close()
        elif self._idle():
            self._close()
            if not self.transport.is_closing():
                self._wait_for_request()

    def _announce(self) -> None:
        """Tell the client to go, of requests sent ahead with the last.

        Not where a body is still on its way: closing upon unread data resets the connection, and the client might never
        see its answer.
        """
        cycle = self.cycle
        if cycle is not None and not cycle.more_body and not cycle.response_started:
            cycle.keep_alive = False

    def _idle(self) -> bool:
        if self.transport.get_write_buffer_size():
            return False
        if self.cycle is None:
            return self.scope is None
        # A scope of its own: the fields of the next request are arriving.
        return self.cycle.response_complete and self.cycle.scope is self.scope

    def _close(self) -> None:
        """Close, unless a request has arrived that the event loop only has not read yet."""
        if not self.transport.is_closing() and _shut(self.transport):
            self.transport.close()


class WebSocketConnection(WebSocketsSansIOProtocol):
    """Told to go at once: there is no last answer to wait for, and clients know how to come back."""

    def __init__(self, config: uvicorn.Config, server_state: ListenerState, app_state: dict[str, Any]) -> None:
        super().__init__(config, server_state, app_state)
        self._refused = server_state.refused

    def data_received(self, data: bytes) -> None:
        """Answer a handshake that `websockets` cannot read, to which uvicorn never says anything. It comes whole."""
        super().data_received(data)
        if not self.handshake_initiated and not self.transport.is_closing():
            self.transport.write(MALFORMED.raw())
            self.transport.close()
            self._refused({"client": self.client, "headers": [], "raw_path": b"-"}, MALFORMED.status, 0, 0.0)

    def handle_connect(self, event: Request) -> None:
        """Log a handshake that `websockets` itself refuses, for want of a key or so: no app hears of it."""
        super().handle_connect(event)
        target = event.path.encode("latin-1")
        if self.response.status_code == 101:
            self.scope[TARGET_KEY] = target  # type: ignore[typeddict-unknown-key]
        else:
            scope: Scope = {"client": self.client, "headers": [], "raw_path": target.partition(b"?")[0]}
            self._refused(scope, self.response.status_code, len(self.response.body), 0.0)

    def drain(self, now: float, linger: float) -> None:
        """Close with 1012 (service restart), and wait for the client to do the same. A handshake ends first."""
        if not self.handshake_complete or self.conn.state is not WebSocketState.OPEN:
            return
        self.stop_keepalive()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": SERVICE_RESTART})
        self.conn.send_close(SERVICE_RESTART)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_timer = self.loop.call_later(self.close_timeout, self.transport.close)


def _shut(transport: Transport) -> bool:
    """Shut it in the very next system call, and return True, where nothing had arrived."""
    with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as peer:
        try:
            return not peer.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            peer.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
    return True


class StartFailed(RateLimitError):
    """The app's lifespan did not start. The reason is in the log."""


class Listener:
    """Has to be made within the event loop's process; the socket stays its owner's."""

    def __init__(self, app: ASGIApp, listening: socket.socket, *, refused: OnRefused = ignore_refusal) -> None:
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
        self._shared = ListenerState(refused)
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

    async def drain(self, *, linger: float, grace: float) -> None:
        """Tell clients to leave by what they are answered. Connections that are idle for `linger` seconds close; what
        runs is cut off after `grace` seconds.

        It accepts for half as long again as newcomers are let in, as there may be a queue, or handshakes on their way.
        """
        accepts = 1.5 * ShutdownTimeouts(linger=linger, grace=grace).accepts
        loop = asyncio.get_running_loop()
        since = loop.time()
        self._shared.draining = True
        while (now := loop.time()) < since + grace:
            for connection in self._shared.all():
                connection.drain(now, linger)
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
        # asyncio's server would lose, unclosed, what it accepted a turn of its loop before (python/cpython#109564).
        if self._server is not None:
            with suppress(NotImplementedError):  # of the loop on Windows, which loses nothing
                asyncio.get_running_loop().remove_reader(self._listening)
            await asyncio.sleep(_LOOK_AGAIN_S)
            self._server.close()
            self._server = None

    def _busy(self) -> bool:
        return bool(self._shared.connections or self._shared.tasks)

    async def _cut_off(self) -> None:
        if tasks := set(self._shared.tasks):
            logger.warning("%d requests were not finished in time and are cut off", len(tasks))
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=_CANCELLED_S)
        for connection in self._shared.all():
            connection.transport.abort()

    async def _give_up_stalled(self) -> None:
        """Abort connections that close while nothing of what is left is read: closing waits until everything is, and
        would keep the connection, and whatever is behind it, for ever."""
        before: dict[asyncio.Transport, int] = {}
        while True:
            await asyncio.sleep(STALLED_S)
            closing = [each.transport for each in self._shared.all() if each.transport.is_closing()]
            left = {transport: transport.get_write_buffer_size() for transport in closing}
            for transport in closing:
                if left[transport] == before.get(transport):
                    transport.abort()
            before = left
