"""`HttpProtocol`: uvicorn's HTTP/1.1, with bounds on what comes before a request is complete enough to be judged.

A header section that is too large is refused with a 431, one that does not come to its end with a 408, and a trailer is
never taken for a header field (RFC 9110, 6.5.1): uvicorn appends them to the headers that the app has been given.

A target comes on in origin-form (RFC 9112, 3.2), whatever form it was written in. Who speaks HTTP/1.0 is not answered
in chunks, and who closes only the way to us is answered still.

An `Upgrade` that is not taken up is as if it had not been offered (7.8). httptools takes the body of such a request for
what comes after it, and uvicorn forgets the rest of the packet and reads the next one as a request.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from asyncio import Transport
from collections.abc import Callable
from typing import Any, Final, TypeAlias, cast

import httptools
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from ratelimit.server.headers import has_body
from ratelimit.server.problems import (
    CUT_SHORT,
    FRAGMENT,
    LARGE,
    NO_TARGET,
    NO_TUNNEL,
    SLOW,
    RequestRefused,
    ServerProblem,
    parser_problem,
)
from ratelimit.server.upstream import TARGET_KEY

DISCONNECT_KEY: Final = "ratelimit.lost"
"""In a scope: a future that is done when the connection is lost, for whoever must not `receive` to find out."""

MAX_HEAD: Final = 64 * 1024
"""Bytes of a request's target and fields."""
MAX_HEAD_S: Final = 30.0
"""Seconds for all of them to arrive, once the first byte is there."""

REFUSED_KEY: Final = "ratelimit.refused"
"""In a scope: the status and length of the answer that the server has given itself, while the app waited for more."""

OnRefused: TypeAlias = Callable[[Scope, int, int, float], None]
"""Told of a request that no app hears of: what is known of it, and the status, the length and seconds of its answer."""

_METHOD: Final = re.compile(rb"[\r\n]*[!#$%&'*+.^_`|~0-9A-Za-z-]+ ")
# As much of a target as a log may hold.
_PATH: Final = re.compile(rb"/[^?#]{,200}")
_ABSOLUTE: Final = re.compile(rb"https?://([^/?]+)(/[^?]*)?(\?.*)?", re.IGNORECASE)
# What every answer begins with.
_BEGINNING: Final = b"HTTP/1.1 "
# How often it is looked whether a client that has closed its side has closed the other too.
_LOOK_AGAIN_S: Final = 0.25
_RESET, _LINGERING = struct.pack("ii", 1, 0), struct.pack("ii", 0, 0)


def ignore_refusal(scope: Scope, status: int, sent: int, span: float) -> None:
    """Tell nobody."""


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._reading = False
        """Whether a header section has begun that is not complete."""
        self._asked = False
        """Whether there has been a request on this connection."""
        self._size = self._unread = 0
        self._since = 0.0
        self._begun = 0
        """Requests, in what was read last."""
        self._half_closed = False
        self._overdue: asyncio.TimerHandle | None = None
        self._disconnected: asyncio.Future[None] = self.loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait: somebody who never says anything is as idle as somebody who says nothing more."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._wait_for_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._in_time()
        self._disconnected.set_result(None)
        super().connection_lost(exc)

    def on_refused(self, scope: Scope, status: int, sent: int, span: float) -> None:
        """Tell whoever writes a log, as `OnRefused`."""

    def eof_received(self) -> bool:  # type: ignore[override]
        """Return whether the connection stays: who asks and then closes its side waits for the answer."""
        cycle: Any = self.cycle
        if cycle is None or cycle.response_complete:
            return False
        if cycle.more_body and not self.pipeline:
            self._refuse(CUT_SHORT)
            return False
        self._in_time()
        if cycle.more_body:
            cycle.more_body = False
            self.pipeline[0] = cycle, cast("Any", _cut_short)
        cycle.keep_alive = False
        if not self._half_closed:
            self._half_closed = True
            self._probe(cycle)
            self._look_for_reset()
        return True

    def data_received(self, data: bytes) -> None:
        # What is read at once is bounded, and may begin with the end of another request's body.
        added = len(data) if self._reading else 0
        self._read(data)
        if self._reading and not self.transport.is_closing():
            self._unread += added
            if self._unread > MAX_HEAD:
                self._refuse(LARGE)
            elif self._overdue is None:
                self._overdue = self.loop.call_later(MAX_HEAD_S, self._refuse, SLOW)

    def on_message_begin(self) -> None:
        self._reading = True
        self._size = self._unread = 0
        self._begun += 1
        self._since = self.loop.time()
        self._unset_keepalive_if_required()
        super().on_message_begin()
        self.scope[DISCONNECT_KEY] = self._disconnected  # type: ignore[typeddict-unknown-key]

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._measure(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        # What comes after the header section is a trailer, and goes no further.
        self._measure(len(name) + len(value))
        if self._reading:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._reading = False
        self._asked = True
        self._in_time()
        # Once more: the answer to the request before may have come to its end meanwhile.
        self._unset_keepalive_if_required()
        if not self.url.startswith(b"/") or b"#" in self.url:
            self._take_origin_form()
        self.scope[TARGET_KEY] = self.url  # type: ignore[typeddict-unknown-key]
        if self.url == b"*":
            # Asked of the whole server, it counts as its root.
            self.url = b"/"
        super().on_headers_complete()
        if self.expect_100_continue or self.scope["http_version"] == "1.0":
            self._answer_plainly()

    def _wait_for_request(self) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _read(self, data: bytes) -> None:
        """Feed the parser. Unlike with uvicorn, the rest of a body whose request is answered stops no idle timer."""
        pieces: list[bytes | memoryview] = [data]
        while pieces:
            piece = pieces.pop()
            self._begun = 1 if self._reading else 0
            try:
                self.parser.feed_data(piece)
            except httptools.HttpParserUpgrade as stopped:
                if self.scope["method"] == "CONNECT":
                    self._refuse(NO_TUNNEL)
                elif self._opens_websocket():
                    self.handle_websocket_upgrade()
                else:
                    pieces += [memoryview(piece)[stopped.args[0] :], self._head_without_upgrade()]
                    self._parse_anew()
            except httptools.HttpParserError as error:
                is_first = self._begun == 1 and not self.url
                self._refuse(parser_problem(error, is_method=is_first and _METHOD.match(piece) is not None))
                return

    def _should_upgrade(self) -> bool:
        """Keep uvicorn from what offers an upgrade: `_read` goes into it when the parser has stopped."""
        return True

    def _opens_websocket(self) -> bool:
        """Return False while an answer is on its way: who writes it would not be told to wait for the client."""
        cycle: Any = self.cycle
        answered = cycle is None or (cycle.response_complete and not self.flow.write_paused)
        is_plain = self.scope["method"] == "GET" and not has_body(dict(self.scope))
        is_plain = is_plain and self.scope["http_version"] == "1.1"
        return is_plain and answered and self._get_upgrade() == b"websocket" and self._should_upgrade_to_ws()

    def _parse_anew(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def _head_without_upgrade(self) -> bytes:
        target: Any = self.scope[TARGET_KEY]  # type: ignore[typeddict-item]
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), target, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                options = [option.strip() for option in value.split(b",")]
                lines.append(b"connection: " + b", ".join(each for each in options if each.lower() != b"upgrade"))
            elif name != b"upgrade":
                lines.append(b"%b: %b" % (name, value))
        return b"\r\n".join([*lines, b"", b""])

    def _measure(self, size: int) -> None:
        self._size += size
        if self._size > MAX_HEAD:
            raise RequestRefused(LARGE)

    def _take_origin_form(self) -> None:
        """Take path and query of a URL; its authority goes over the `Host` field (RFC 9112, 3.2)."""
        if self.url == b"*" and self.parser.get_method() == b"OPTIONS":
            return
        if b"#" in self.url:
            raise RequestRefused(FRAGMENT)
        if self.parser.get_method() == b"CONNECT":
            raise RequestRefused(NO_TUNNEL)
        absolute = _ABSOLUTE.fullmatch(self.url)
        if absolute is None:
            raise RequestRefused(NO_TARGET)
        host, path, query = absolute.groups(default=b"")
        self.url = (path or b"/") + query
        places = [place for place, (name, _) in enumerate(self.headers) if name == b"host"]
        if len(places) == 1:
            self.headers[places[0]] = b"host", host
        elif not places and self.parser.get_http_version() == "1.0":
            self.headers.append((b"host", host))

    def _answer_plainly(self) -> None:
        """Send no `100 Continue` to who does not wait for it, and to HTTP/1.0 no chunks either."""
        cycle: Any = self.cycle
        if cycle is None or cycle.scope is not self.scope:
            return
        if self.scope["http_version"] == "1.0":
            cycle.waiting_for_100_continue = False
            cycle.send = UntilClose(cycle).send
        elif not has_body(dict(self.scope)):
            cycle.waiting_for_100_continue = False

    def _probe(self, cycle: RequestResponseCycle) -> None:
        """Send a byte, which a client that has left for good answers with a reset. One that reads is owed it anyway: it
        is the beginning of its answer, or a leading zero of the next chunk's size."""
        if not cycle.response_started and not self.pipeline:
            self.transport.write(_BEGINNING)
            cycle.transport = Begun(cycle)  # type: ignore[assignment]
        elif cycle.response_started and cycle.chunked_encoding:
            self.transport.write(b"0")

    def _look_for_reset(self) -> None:
        """Do what event loops do not once there is nothing more to read."""
        if self.transport.is_closing():
            return
        if self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
        else:
            self.loop.call_later(_LOOK_AGAIN_S, self._look_for_reset)

    def _refuse(self, problem: ServerProblem) -> None:
        """Say it where it cannot be taken for the answer to another request, or for a part of one; and close."""
        self._in_time()
        last = self.cycle if self._asked else None
        if last is None or last.response_complete or (last.more_body and not last.response_started):
            if not self.pipeline:
                self.transport.write(problem.raw())
                self._tell(problem, last)
        elif not last.more_body:
            # Nonsense after a request that is whole: that one is answered, and nothing else is read.
            last.keep_alive = False
            self.flow.pause_reading()
            return
        self.transport.close()

    def _tell(self, problem: ServerProblem, last: RequestResponseCycle | None) -> None:
        """Log it. Where an app was asked already, there is a line for that request, and this is its status."""
        answered = problem.status, problem.length
        if last is not None and not last.response_complete:
            last.scope[REFUSED_KEY] = answered  # type: ignore[typeddict-unknown-key]
            return
        path = _PATH.match(self.url) if self.url else None
        scope: Scope = {"client": self.client, "headers": [], "raw_path": path[0] if path else b"-", "method": "-"}
        if self.url:
            scope["method"] = self.parser.get_method().decode("ascii")
        self.on_refused(scope, *answered, self.loop.time() - self._since)

    def _in_time(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None


class UntilClose:
    """Answer an HTTP/1.0 client: what has no length ends with the connection (RFC 9112, 6.3), and with a reset where it
    breaks off."""

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._send = cycle.send
        self._counts = True

    async def send(self, message: Message) -> None:
        """Tell uvicorn a length for each piece, as it sends in chunks what has none."""
        cycle = self._cycle
        if message["type"] == "http.response.start":
            self._counts = any(name.lower() == b"content-length" for name, _ in message.get("headers", ()))
            if not self._counts:
                cycle.chunked_encoding = False
                self._close_by(_RESET)
        elif not self._counts:
            cycle.expected_content_length = len(message.get("body", b""))
            if not message.get("more_body", False):
                self._close_by(_LINGERING)
        await self._send(message)  # type: ignore[arg-type]

    def _close_by(self, how: bytes) -> None:
        place = self._cycle.transport.get_extra_info("socket")
        if place is not None and place.fileno() >= 0:
            place.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, how)


class Begun:
    """The transport of an answer of which the beginning is written already."""

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._transport: Transport = cycle.transport

    def write(self, data: bytes) -> None:
        self._cycle.transport = self._transport
        self._transport.write(data[len(_BEGINNING) :])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


async def _cut_short(scope: Scope, receive: Receive, send: Send) -> None:
    await CUT_SHORT.send(scope, receive, send)
