"""uvicorn's connections, which know how to leave: no request is cut that had arrived when its connection closes."""

from __future__ import annotations

import os
import socket
from asyncio import Transport
from typing import Any, Final, cast

import uvicorn
from starlette.types import Scope
from uvicorn._types import HTTPScope
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets import http11
from websockets.http11 import Request
from websockets.protocol import State as WebSocketState

from ratelimit.proxy.failures import MALFORMED
from ratelimit.proxy.intake import MAX_HEAD, Intake, OnRefused
from ratelimit.proxy.upstream import TARGET

SERVICE_RESTART: Final = 1012

# A handshake is measured as any other request is, before `websockets` reads it: 8 KB a line, which is not much for
# cookies, and 128 fields are no limits here.
http11.MAX_LINE_LENGTH = 2 * MAX_HEAD
http11.MAX_NUM_HEADERS = MAX_HEAD


class Shared(ServerState):
    """What the connections of one listener share."""

    def __init__(self, refused: OnRefused) -> None:
        super().__init__()
        self.leaving = False
        self.refused = refused

    def all(self) -> list[HttpConnection | WebSocketConnection]:
        """As they are now."""
        return cast("list[HttpConnection | WebSocketConnection]", list(self.connections))


class HttpConnection(Intake):
    """While leaving, each answer says that it is the last, and a connection that stays idle closes."""

    server_state: Shared
    scope: HTTPScope | None  # type: ignore[assignment]
    cycle: RequestResponseCycle | None  # type: ignore[assignment]

    _idle_since: float | None = None
    """As `leave` has seen it."""

    def data_received(self, data: bytes) -> None:
        """A request that arrives while leaving is answered as any other, with `Connection: close`."""
        super().data_received(data)
        if self.server_state.leaving:
            self._announce()

    def on_refused(self, scope: Scope, status: int, sent: int, span: float) -> None:
        """See `Intake`."""
        self.server_state.refused(scope, status, sent, span)

    def leave(self, now: float, linger: float) -> None:
        """To be called again and again: closes after `linger` idle seconds."""
        if not self._idle():
            self._idle_since = None
            self._announce()
        elif self._idle_since is None:
            self._idle_since = now
        elif now - self._idle_since >= linger:
            self._close()

    def timeout_keep_alive_handler(self) -> None:
        """As when leaving: a request that arrives in the last moment is answered. An answer that was not read in all
        this time is the last."""
        if self.transport.get_write_buffer_size():
            self.transport.close()
        elif self._idle():
            self._close()
            if not self.transport.is_closing():
                self._wait_for_request()

    def _announce(self) -> None:
        """Of requests sent ahead, with the last. Not where a body is still on its way: closing upon unread data resets
        the connection, and the client might never see its answer."""
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
        """Unless a request has arrived that the event loop only has not read yet."""
        if not self.transport.is_closing() and _shut(self.transport):
            self.transport.close()


class WebSocketConnection(WebSocketsSansIOProtocol):
    """Told to go at once: there is no last answer to wait for, and clients know how to come back."""

    def __init__(self, config: uvicorn.Config, server_state: Shared, app_state: dict[str, Any]) -> None:
        super().__init__(config, server_state, app_state)
        self._refused = server_state.refused

    def data_received(self, data: bytes) -> None:
        """The handshake comes first, and whole. To one that `websockets` cannot read uvicorn never says anything."""
        super().data_received(data)
        if not self.handshake_initiated and not self.transport.is_closing():
            self.transport.write(MALFORMED.raw())
            self.transport.close()
            self._refused({"client": self.client, "headers": [], "raw_path": b"-"}, MALFORMED.status, 0, 0.0)

    def handle_connect(self, event: Request) -> None:
        """One that `websockets` itself refuses, for want of a key or so, no app hears of."""
        super().handle_connect(event)
        target = event.path.encode("latin-1")
        if self.response.status_code == 101:
            self.scope[TARGET] = target  # type: ignore[typeddict-unknown-key]
        else:
            scope: Scope = {"client": self.client, "headers": [], "raw_path": target.partition(b"?")[0]}
            self._refused(scope, self.response.status_code, len(self.response.body), 0.0)

    def leave(self, now: float, linger: float) -> None:
        """Close with 1012 (service restart), and wait for the client to do the same. A handshake ends first."""
        if not self.handshake_complete or self.conn.state is not WebSocketState.OPEN:
            return
        self.stop_keepalive()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": SERVICE_RESTART})
        self.conn.send_close(SERVICE_RESTART)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_timer = self.loop.call_later(self.close_timeout, self.transport.close)


def _shut(transport: Transport) -> bool:
    """Whether nothing had arrived: then it is shut, in the very next system call."""
    with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as peer:
        try:
            return not peer.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            peer.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
    return True
