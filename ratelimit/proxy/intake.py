"""`Intake`: uvicorn's HTTP/1.1, with bounds on what comes before a request is complete enough to be judged.

A header section that is too large is refused with a 431, one that does not come to its end with a 408, and a trailer is
never taken for a header field (RFC 9110, 6.5.1): uvicorn appends them to the headers that the app has been given.

An `Upgrade` that is not taken up is as if it had not been offered (7.8). httptools takes the body of such a request for
what comes after it, and uvicorn forgets the rest of the packet and reads the next one as a request.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ratelimit.proxy.failures import LARGE, MALFORMED, NO_TUNNEL, SLOW, Failure
from ratelimit.proxy.upload import LOST, has_body

MAX_HEAD: Final = 64 * 1024
"""Bytes of a request's target and fields."""
MAX_HEAD_S: Final = 30.0
"""Seconds for all of them to arrive, once the first byte is there."""


class Intake(HttpToolsProtocol):
    """For uvicorn's `http=Intake`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._reading = False
        """Whether a header section has begun that is not complete."""
        self._asked = False
        """Whether there has been a request on this connection."""
        self._size = self._unread = 0
        self._overdue: asyncio.TimerHandle | None = None
        self._lost: asyncio.Future[None] = self.loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Somebody who never says anything is as idle as somebody who says nothing more."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._wait_for_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._in_time()
        self._lost.set_result(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
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
        """See `httptools`."""
        self._reading = True
        self._size = self._unread = 0
        self._unset_keepalive_if_required()
        super().on_message_begin()
        self.scope[LOST] = self._lost  # type: ignore[typeddict-unknown-key]

    def on_url(self, url: bytes) -> None:
        """See `httptools`."""
        self._measure(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """See `httptools`. What comes after the header section is a trailer, and goes no further."""
        self._measure(len(name) + len(value))
        if self._reading:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """See `httptools`."""
        self._reading = False
        self._asked = True
        self._in_time()
        # Once more: the answer to the request before may have come to its end meanwhile.
        self._unset_keepalive_if_required()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """What the parser gave up on."""
        self._refuse(LARGE if self._size > MAX_HEAD else MALFORMED)

    def _wait_for_request(self) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _read(self, data: bytes) -> None:
        """Unlike uvicorn's, the rest of a body whose request is answered does not stop the timer of what is idle."""
        pieces: list[bytes | memoryview] = [data]
        while pieces:
            piece = pieces.pop()
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
            except httptools.HttpParserError:
                self.logger.warning("Invalid HTTP request received.")
                self.send_400_response("")
                return

    def _should_upgrade(self) -> bool:
        """uvicorn leaves alone what offers an upgrade: `_read` goes into it when the parser has stopped."""
        return True

    def _opens_websocket(self) -> bool:
        """Not while an answer is on its way: who writes it would not be told any more to wait for the client."""
        cycle: Any = self.cycle
        answered = cycle is None or (cycle.response_complete and not self.flow.write_paused)
        is_plain = self.scope["method"] == "GET" and not has_body(dict(self.scope))
        return is_plain and answered and self._get_upgrade() == b"websocket" and self._should_upgrade_to_ws()

    def _parse_anew(self) -> None:
        """As uvicorn begins."""
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def _head_without_upgrade(self) -> bytes:
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
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
            raise ValueError("the header section is too large")

    def _refuse(self, failure: Failure) -> None:
        """Say it where it cannot be taken for the answer to another request, or for a part of one; and close."""
        self._in_time()
        last = self.cycle if self._asked else None
        if last is None or last.response_complete or (last.more_body and not last.response_started):
            if not self.pipeline:
                self.transport.write(failure.raw())
        elif not last.more_body:
            # Nonsense after a request that is whole: that one is answered, and nothing else is read.
            last.keep_alive = False
            self.flow.pause_reading()
            return
        self.transport.close()

    def _in_time(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None
