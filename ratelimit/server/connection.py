"""`ClientConnection`: one client's HTTP/1.1 connection. It reads requests, each of which has to be one that everybody
reads alike, gives them to their `Exchange` in turn, and frames what that answers.

What comes before a request is complete enough to be judged is bounded: a header section that is too large is refused
with a 431, one that does not come to its end with a 408. Who speaks HTTP/1.0 is not answered in chunks, and who closes
only the way to us is answered still. An `Upgrade` that is not taken up is as if it was not offered (RFC 9110, 7.8).
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import struct
from collections import deque
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, cast

import httptools

from ratelimit.http.problems import Problem
from ratelimit.server.exchange import Exchange
from ratelimit.server.problems import CUT_SHORT, LARGE, NO_TUNNEL, PHRASES, SLOW, RequestRefused, parser_problem
from ratelimit.server.request import RawHeader, Request

if TYPE_CHECKING:
    from ratelimit.server.listener import ListenerState
    from ratelimit.server.tunnel import WebSocketTunnel

MAX_HEAD: Final = 64 * 1024
"""Bytes of a request's target and fields."""
MAX_HEAD_S: float = 30.0
"""Seconds for all of them to arrive, once the first byte is there."""
KEEP_ALIVE_S: float = 75.0
STALLED_S: float = 60.0
"""So long nothing of what is left is read, and a connection that closes is given up."""
LEFTOVER_S: Final = 30.0
"""Seconds for the rest of a body whose request is answered already."""
PIECE_S: float = 5.0
"""Seconds between two pieces of it."""
LOOK_AGAIN_S: float = 0.25
"""How often it is looked whether a client that has closed its side has closed the other too."""

NEVER: Final = float("inf")

# What is parsed at once while a request waits for its turn: bounds what is held of those behind it.
_PIECE: Final = 16 * 1024
_MAX_PIECE: Final = 64 * 1024
_METHOD: Final = re.compile(rb"[\r\n]*[!#$%&'*+.^_`|~0-9A-Za-z-]+ ")
# What every answer begins with.
_BEGINNING: Final = b"HTTP/1.1 "
_RESET, _LINGERING = struct.pack("ii", 1, 0), struct.pack("ii", 0, 0)
_BODILESS: Final = frozenset({204, 304})
_UNWRITABLE: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_MAX_KNOWN: Final = 256


class ClientConnection:
    """`shared` is what all connections of a listener have in common; it says who answers."""

    __slots__ = (
        "_begun", "_chunked", "_closing", "_fields", "_half_closed", "_held", "_idle_since", "_in_head", "_is_fed",
        "_is_waiting", "_left", "_no_more", "_offer", "_out", "_queue", "_receiving", "_request", "_server",
        "_stash", "_turning", "_unread", "_wrote", "client", "corked", "due", "exchange", "loop", "parser", "shared",
        "transport", "tunnel", "write_paused",
    )  # fmt: skip

    def __init__(self, shared: ListenerState) -> None:
        self.shared = shared
        self.loop = shared.loop
        self.transport: asyncio.Transport = cast("Any", None)
        self.client: tuple[str, int] | None = None
        self.parser = self._new_parser()
        self.exchange: Exchange | None = None
        """Who answers now."""
        self.tunnel: WebSocketTunnel | None = None
        self.due = NEVER
        """When it is time for whatever is waited for, on the loop's clock."""
        self.write_paused = False
        self.corked = False
        """Whether nothing is to be sent yet."""
        self._server: tuple[str, int | None] | None = None
        self._queue: deque[Exchange] = deque()
        """Those whose turn comes later."""
        self._stash: deque[bytes | memoryview] = deque()
        """What was read and not parsed."""
        self._receiving: Exchange | None = None
        """Whose body arrives."""
        self._request = Request(0.0)
        self._fields: list[RawHeader] = []
        """Those of the section that is read: header or trailer."""
        self._in_head = False
        """Whether a header section has begun that is not complete."""
        self._unread = 0
        """Bytes of the pieces that it, or a trailer section, has begun in."""
        self._offer: Request | None = None
        """A request that would upgrade."""
        self._no_more = False
        """Whether nothing is read any more, for what came last made no sense."""
        self._half_closed = self._begun = self._turning = self._closing = self._chunked = self._wrote = False
        self._held = self._is_waiting = False
        self._is_fed = False
        """Whether something of a body has come that is not sent on."""
        self._out: list[bytes] = []
        self._idle_since: float | None = None
        """As `drain` has seen it."""
        self._left = -1

    # --- The transport tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait: somebody who never says anything is as idle as somebody who says nothing more."""
        self.transport = cast("asyncio.Transport", transport)
        self.client = _address(transport.get_extra_info("peername"))
        self._server = _address(transport.get_extra_info("sockname"))
        self.shared.connections.add(self)
        self.due = self.loop.time() + KEEP_ALIVE_S

    def connection_lost(self, exc: Exception | None) -> None:
        self.shared.connections.discard(self)
        self._stash.clear()
        if self.tunnel is not None:
            self.tunnel.client_lost()
        for exchange in [self.exchange, *self._queue]:
            if exchange is not None:
                exchange.on_lost()
        self._queue.clear()
        self.parser = cast("Any", None)

    def data_received(self, data: bytes) -> None:
        if self.tunnel is not None:
            self.tunnel.from_client(data)
        elif not self._no_more:
            self._stash.append(data)
            self._turn()

    def eof_received(self) -> bool:
        """Return whether the connection stays: who asks and then closes its side waits for the answer."""
        if self.tunnel is not None or (self.exchange is None and not self._queue):
            return False
        if (cut := self._receiving) is not None:
            if cut is self.exchange:
                self._refuse(CUT_SHORT)
                return False
            cut.is_cut = True
        self._no_more = True
        if not self._half_closed:
            self._half_closed = True
            self._probe()
            self._look_for_reset()
        return True

    def pause_writing(self) -> None:
        self.write_paused = True
        if self.tunnel is not None:
            self.tunnel.client_full()
        elif self.exchange is not None:
            self.exchange.on_full()

    def resume_writing(self) -> None:
        self.write_paused = False
        if self.tunnel is not None:
            self.tunnel.client_drained()
        elif self.exchange is not None:
            self.exchange.on_drained()

    # --- Reading

    def _new_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    def _turn(self) -> None:
        """Go on with what was read, as far as that goes without waiting for an answer."""
        if self._turning:
            return
        self._turning = True
        queue, stash = self._queue, self._stash
        try:
            while (queue or stash) and not self._closing and self.tunnel is None:
                if not queue:
                    self._parse(stash.popleft())
                elif self.exchange is None:
                    self._begin(queue.popleft())
                else:
                    break
        finally:
            self._turning = False
        self._rest()

    def _rest(self) -> None:
        """Pass on what there is by now, and wait for what comes next."""
        if self._is_fed:
            self._is_fed = False
            if self.exchange is not None:
                self.exchange.flush()
        if self.exchange is None:
            self._be_idle()
        if self._stash or self._queue or self._held or self._is_waiting:
            self._regulate()
        if self._out:
            self.flush()

    def _begin(self, exchange: Exchange) -> None:
        if exchange.is_cut:
            self._say(CUT_SHORT, exchange)
            return
        self.exchange = exchange
        exchange.is_begun = True
        trace = self.shared.trace
        if trace is None:
            exchange.begin()
        else:
            with trace.joined(exchange.request.headers):
                exchange.begin()

    def _be_idle(self) -> None:
        if self.tunnel is not None or self._closing:
            return
        if self._no_more:
            self.close()
        elif self._in_head:
            self.due = self._request.since + MAX_HEAD_S
        elif self._receiving is None:
            self.due = self.loop.time() + KEEP_ALIVE_S
        elif not isinstance(self._receiving, Leftover):
            self._receiving = Leftover(self, self._receiving.request)

    def hold(self, held: bool) -> None:
        """Read nothing more of the body until told so, for nobody takes it."""
        if held is not self._held:
            self._held = held
            self._regulate()

    def _regulate(self) -> None:
        # What is not to be read any more is read and dropped: so it is seen when the client leaves.
        wait = bool(self._queue) or bool(self._stash) or (self._held and self._receiving is not None)
        if wait is not self._is_waiting and not self.transport.is_closing():
            self._is_waiting = wait
            if wait:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    def _parse(self, data: bytes | memoryview) -> None:
        """Feed the parser a piece, and keep the rest for later."""
        most = _PIECE if self._receiving is None else _MAX_PIECE
        if len(data) > most:
            data = memoryview(data)
            self._stash.appendleft(data[most:])
            data = data[:most]
        is_first = not self._in_head and self._receiving is None
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as stopped:
            self._stop_at_offer(memoryview(data)[stopped.args[0] :])
            return
        except httptools.HttpParserError as error:
            is_method = is_first and not self._request.target and _METHOD.match(data) is not None
            self._refuse(parser_problem(error, is_method=is_method))
            return
        if self._in_head or (self._receiving is not None and self._fields):
            # The first piece may have brought something else before these fields.
            self._unread += len(data)
            if self._unread > MAX_HEAD + most:
                self._refuse(LARGE)

    def on_message_begin(self) -> None:
        self._in_head = True
        self._unread = 0
        self._request = request = Request(self.loop.time())
        self._fields = request.headers

    def on_url(self, url: bytes) -> None:
        self._request.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        parser, request = self.parser, self._request
        if self._unread:
            # Of several pieces, as any that is too large is.
            if len(request.target) + sum([len(name) + len(value) for name, value in request.headers]) > MAX_HEAD:
                raise RequestRefused(LARGE)
            self._unread = 0
        # What comes after the header section is a trailer, and never taken for a field (RFC 9110, 6.5.1).
        self._fields = []
        request.judge(parser.get_method(), parser.get_http_version(), keep_alive=parser.should_keep_alive())
        if parser.should_upgrade():
            # The parser stops behind this head, and tells only then how far it has come.
            self._offer = request
            return
        self._admit(request)

    def _admit(self, request: Request) -> None:
        if self._closing:
            return
        request.show(self.client, self._server)
        shared = self.shared
        self._receiving = exchange = shared.exchange(self, request)
        shared.exchanges.add(exchange)
        self._queue.append(exchange)

    def on_body(self, body: bytes) -> None:
        if self._receiving is not None:
            self._receiving.on_body(body)
            self._is_fed = True

    def on_message_complete(self) -> None:
        receiving, self._receiving = self._receiving, None
        if receiving is not None:
            receiving.on_complete(self._fields)
            if receiving.is_begun:
                self._is_fed = True

    def _stop_at_offer(self, rest: memoryview) -> None:
        request, self._offer = self._offer, None
        if rest:
            self._stash.appendleft(rest)
        if request is None or request.method == b"CONNECT":
            self._stash.clear()
            self._refuse(NO_TUNNEL)
        elif request.opens_websocket and self.exchange is None and not self._queue and not self.write_paused:
            # Not while an answer is on its way: who writes it would not be told to wait for the client.
            request.show(self.client, self._server)
            request.scope["type"] = "websocket"
            exchange = self.shared.exchange(self, request)
            self.shared.exchanges.add(exchange)
            exchange.on_complete([])
            self._queue.append(exchange)
            self.parser = self._new_parser()
        else:
            # httptools takes the body of such a request for what comes after it.
            self.parser = self._new_parser()
            self._stash.appendleft(request.without_upgrade())

    def _refuse(self, problem: Problem) -> None:
        """Say it where it cannot be taken for the answer to another request, or for a part of one; and close."""
        self._stash.clear()
        self._in_head = False
        current, receiving = self.exchange, self._receiving
        self._receiving = None
        if receiving is not None and receiving is not current:
            if receiving not in self._queue:
                # It is answered already: there is nobody to tell.
                self.close()
                return
            self._queue.remove(receiving)
        if current is None and not self._queue:
            self._say(problem, receiving)
        elif receiving is not None and receiving is current:
            self.exchange = None
            if current.started:
                self.abort()
            else:
                self._say(problem, current)
            current.on_lost()
        else:
            # Nonsense after requests that are whole: those are answered, and nothing else is read.
            self._no_more = True
            if receiving is not None:
                receiving.over()

    def _say(self, problem: Problem, about: Exchange | None) -> None:
        lines = [b"HTTP/1.1 %d %b" % (problem.status, problem.title.encode())]
        lines += [b"%b: %b" % field for field in [*problem.fields(), (b"connection", b"close")]]
        self._out.append(self._continued(b"\r\n".join([*lines, b"", problem.encode()])))
        self.flush()
        if about is None:
            if self._request.target:
                self._request.method = self.parser.get_method()
            self.shared.refused(self, self._request, problem)
            # Closing upon unread data resets the connection: what still comes is dropped, so that the answer is seen.
            self._closing = self._no_more = True
            self.transport.write_eof()
            self.due = self.loop.time() + PIECE_S
            self._left = 0
        else:
            about.status, about.sent = problem.status, len(problem.encode())
            if not about.is_begun:
                about.over()
            self.close()

    # --- Writing

    def start(self, status: int, reason: bytes, headers: Iterable[RawHeader], *, close: bool = False) -> None:
        lines: list[bytes] = []
        for name, value in headers:
            lines += (name, b": ", value, b"\r\n")
        names = lines[::4]
        has_length, has_date = b"content-length" in names, b"date" in names
        self.write_head(status, reason, lines, has_length=has_length, has_date=has_date, close=close)

    def write_head(
        self,
        status: int,
        reason: bytes,
        lines: list[bytes],
        *,
        has_length: bool,
        has_date: bool,
        close: bool = False,
        upgrade: bytes = b"",
    ) -> None:
        """Write the head of the answer from the lines of its fields, in pieces. It is framed by the length that these
        tell, or else as the client can read it. `upgrade`: the protocol that follows a 101."""
        exchange = self.exchange
        assert exchange is not None
        exchange.started, exchange.status = True, status
        request, out = exchange.request, self._out
        line = _status_line(status, reason)
        out.append(self._continued(line) if self._begun else line)
        out += lines
        if not has_date:
            out.append(self.shared.date())
        self._chunked = False
        self._wrote = request.method != b"HEAD" and status not in _BODILESS
        if upgrade:
            out.append(b"connection: upgrade\r\nupgrade: %b\r\n" % upgrade)
        elif not has_length and self._wrote:
            close = not self._chunk(request) or close
        if not request.keep_alive or request.expects_continue or self._no_more or self.shared.draining:
            close = close or self._is_last(exchange)
        if close and not upgrade:
            self._no_more = self._no_more or exchange.is_complete
            request.keep_alive = False
            out.append(b"connection: close\r\n")
        out.append(b"\r\n")

    def _chunk(self, request: Request) -> bool:
        """Return whether an answer without a length goes in chunks. Else it ends with the connection (RFC 9112, 6.3),
        and with a reset where it breaks off."""
        self._chunked = request.version == "1.1"
        if self._chunked:
            self._out.append(b"transfer-encoding: chunked\r\n")
        else:
            self._close_by(_RESET)
        return self._chunked

    def send(self, data: bytes) -> None:
        """Write a piece of the body; nothing where the answer can have none."""
        if not self._wrote or not data:
            return
        if self._chunked:
            self._out += (b"%x\r\n" % len(data), data, b"\r\n")
        else:
            self._out.append(data)
        self.exchange.sent += len(data)  # type: ignore[union-attr]

    def finish(self, trailers: Iterable[RawHeader] = ()) -> None:
        exchange = self.exchange
        assert exchange is not None
        if self._chunked:
            self._out.append(b"0\r\n")
            for name, value in trailers:
                self._out += (name, b": ", value, b"\r\n")
            self._out.append(b"\r\n")
        elif not exchange.request.keep_alive:
            self._close_by(_LINGERING)
        self.exchange = None
        self._held = False
        if not exchange.request.keep_alive:
            self._leave(exchange)
        elif self._queue or self._stash:
            self._turn()
        elif not self._turning:
            self._rest()

    def flush(self) -> None:
        out = self._out
        if out and not self.corked:
            self.transport.write(out[0] if len(out) == 1 else b"".join(out))
            out.clear()

    def listen(self) -> None:
        """Read, for a tunnel, which regulates itself."""
        if self._is_waiting:
            self._is_waiting = False
            self.transport.resume_reading()

    def take_stash(self) -> bytes:
        """Return what was read and not parsed: it is for a tunnel."""
        rest = b"".join(self._stash)
        self._stash.clear()
        return rest

    def go_on(self) -> None:
        """Tell a client that waits for it to send the body."""
        self.transport.write(self._continued(b"HTTP/1.1 100 Continue\r\n\r\n"))

    def _continued(self, head: bytes) -> bytes:
        """Return the head of an answer but for what is sent of it already."""
        begun, self._begun = self._begun, False
        return head[len(_BEGINNING) :] if begun else head

    def _is_last(self, exchange: Exchange) -> bool:
        """Return whether the client is told to go, of requests sent ahead with the last.

        Not where a body is still on its way: closing upon unread data resets the connection, and the client might never
        see its answer.
        """
        if not exchange.request.keep_alive or (exchange.request.expects_continue and not exchange.is_complete):
            return True
        if self._queue:
            return False
        return self._no_more or (self.shared.draining and exchange.is_complete and not self._in_head)

    # --- Leaving

    def close(self) -> None:
        """Let go, when all is sent. What is queued is not answered any more."""
        self.flush()
        self._closing = True
        self.transport.close()
        self.due = self.loop.time() + STALLED_S
        self._left = -1

    def abort(self) -> None:
        """Let go at once: an answer breaks off, and the client knows that there is more."""
        self._out.clear()
        self._closing = True
        self.transport.abort()

    def _leave(self, exchange: Exchange) -> None:
        if exchange.is_complete or exchange.request.expects_continue:
            self.close()
            return
        # Closing upon unread data resets the connection: wait for it, but for the answer to be seen only.
        self.flush()
        self.transport.write_eof()
        self._no_more = False
        self._receiving = Leftover(self, exchange.request)

    def expire(self) -> None:
        """Do what is to be done now that `due` has come."""
        self.due = NEVER
        if self._closing:
            left = self.transport.get_write_buffer_size()
            if left == self._left:
                self.transport.abort()
            else:
                self._left = left
                self.due = self.loop.time() + STALLED_S
        elif self.tunnel is not None:
            self.tunnel.expire()
        elif self.exchange is not None:
            self.exchange.on_due()
            self.flush()
        elif self._in_head:
            self._refuse(SLOW)
        elif self._receiving is not None:
            self.abort()
        else:
            self.end_idle()

    def end_idle(self) -> None:
        """Close as when draining: a request that arrives in the last moment is answered. An answer that was not read in
        all this time is the last."""
        if self.transport.get_write_buffer_size():
            self.close()
        elif self._is_idle() and not self._close_unless_asked():
            self.due = self.loop.time() + KEEP_ALIVE_S

    def drain(self, now: float, linger: float) -> None:
        """Close after `linger` idle seconds. To be called again and again."""
        if self.tunnel is not None:
            self.tunnel.restart()
        elif not self._is_idle():
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
        elif now - self._idle_since >= linger:
            self._close_unless_asked()

    def _is_idle(self) -> bool:
        waits = self.exchange is None and not self._queue and not self._in_head and self._receiving is None
        return waits and not self.transport.get_write_buffer_size()

    def _close_unless_asked(self) -> bool:
        """Close, unless a request has arrived that the event loop only has not read yet."""
        if not self.transport.is_closing() and _shut(self.transport):
            self.close()
        return self._closing

    def _probe(self) -> None:
        """Send a byte, which a client that has left for good answers with a reset. One that reads is owed it anyway: it
        is the beginning of its answer, or a leading zero of the next chunk's size."""
        exchange = self.exchange
        if exchange is None or self._out:
            return
        if not exchange.started and not self._queue and not self._begun:
            self._begun = True
            self.transport.write(_BEGINNING)
        elif exchange.started and self._chunked:
            self.transport.write(b"0")

    def _look_for_reset(self) -> None:
        """Do what event loops do not once there is nothing more to read."""
        if self.transport.is_closing():
            return
        if self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
        else:
            self.loop.call_later(LOOK_AGAIN_S, self._look_for_reset)

    def _close_by(self, how: bytes) -> None:
        if self.exchange is None or self.exchange.request.version == "1.1":
            return
        place = self.transport.get_extra_info("socket")
        if place is not None and place.fileno() >= 0 and place.family != socket.AF_UNIX:
            place.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, how)


@lru_cache(_MAX_KNOWN)
def _status_line(status: int, reason: bytes) -> bytes:
    # What no server may write into an answer would be our error then, and is the upstream's.
    return b"HTTP/1.1 %d %b\r\n" % (status, PHRASES.get(status, b"") if _UNWRITABLE.search(reason) else reason)


class Leftover(Exchange):
    """The rest of a body whose request is answered: read, so that the answer is seen, and dropped."""

    def __init__(self, connection: ClientConnection, request: Request) -> None:
        super().__init__(connection, request)
        now = connection.loop.time()
        self._until = now + LEFTOVER_S
        connection.due = now + PIECE_S

    def on_body(self, data: bytes) -> None:
        self.connection.due = min(self._until, self.connection.loop.time() + PIECE_S)

    def on_complete(self, trailers: list[RawHeader]) -> None:
        if not self.request.keep_alive:
            self.connection.close()


def _address(place: Any) -> tuple[str, int] | None:
    """Return an address; None for a unix socket."""
    return (str(place[0]), int(place[1])) if isinstance(place, tuple | list) else None


def _shut(transport: asyncio.Transport) -> bool:
    """Shut it in the very next system call, and return True, where nothing had arrived."""
    with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as peer:
        try:
            return not peer.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            peer.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
    return True
