"""`Intake`: uvicorn's HTTP/1.1, with bounds on what comes before a request is complete enough to be judged.

A header section that is too large is refused with a 431, one that does not come to its end with a 408, and a trailer is
never taken for a header field (RFC 9110, 6.5.1): uvicorn appends them to the headers that the app has been given.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ratelimit.proxy.failures import LARGE, MALFORMED, SLOW, Failure

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

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Somebody who never says anything is as idle as somebody who says nothing more."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._in_time()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        # What is read at once is bounded, and may begin with the end of another request's body.
        added = len(data) if self._reading else 0
        super().data_received(data)
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
        super().on_message_begin()

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
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """What the parser gave up on."""
        self._refuse(LARGE if self._size > MAX_HEAD else MALFORMED)

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
