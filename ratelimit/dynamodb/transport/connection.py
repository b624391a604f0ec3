"""`Connection`: one kept-alive connection, one request at a time. Whatever is not plain HTTP/1.1 in order ends it.

Errors are botocore's own, so that `errors.explain` says the same of both transports.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Literal, TypeAlias, cast
from zlib import crc32

import httptools
from botocore import exceptions as aws

from ratelimit.dynamodb.errors import UnusableAnswer
from ratelimit.dynamodb.transport.boto import STALE_S, Stale, Watch

MAX_ANSWER: Final = 1 << 20
"""Bytes of one answer, headers included: an item may have 400 KB, and ours has less than one."""

Ending: TypeAlias = Literal["closed", "timeout", "cancelled", "too_large", "garbage", "idle", "shutdown"]
"""Why a connection ended: counted in `Stats.dropped`."""

_INFORMATIONAL: Final = 200
_LENGTHS: Final = frozenset(map(len, ("date", "x-amz-crc32", "content-encoding")))


class Response:
    """An answer that arrived whole, and unharmed as far as its checksum tells."""

    __slots__ = ("body", "date", "status")

    def __init__(self, status: int, body: bytes, date: bytes) -> None:
        self.status = status
        self.body = body
        self.date = date
        """The `Date` header; empty where there was none."""


class Connection(asyncio.Protocol):
    """A connection. `usable` while it may take a request; `ended` is called once, when it never will again."""

    def __init__(self, endpoint: str, ended: Callable[[Connection, Ending], None], watch: Watch) -> None:
        self.usable = False
        self.since = 0.0
        """When it was last written to or let go, as `elapsed` has it."""
        self.busy = False
        self._endpoint = endpoint
        self._ended = ended
        self._watch = watch
        self._stale = False
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self.gone = self._loop.create_future()
        """Done when the socket is closed."""
        self._answer: asyncio.Future[Response] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._size = 0
        self._body = b""
        self._crc: bytes | None = None
        self._encoding = self._date = b""

    def ask(self, request: bytes, now: float) -> asyncio.Future[Response]:
        """Send a request; only while `usable`. The future ends with an answer or with one of `BOTO_ERRORS`, as long as
        somebody calls `expire` in time."""
        assert self.usable
        assert self._transport is not None
        self._answer = answer = self._loop.create_future()
        self.busy = True
        self._stale = now - self.since >= STALE_S
        self.since = now
        self._transport.write(request)
        return answer

    def is_alive(self, now: float) -> bool:
        """Whether an idle one may take a request, as far as anybody knows here: the loop may not have heard yet."""
        return self.usable and self._watch.is_quiet(now - self.since)

    def expire(self) -> None:
        """The answer is overdue."""
        self.end("timeout", aws.ReadTimeoutError(endpoint_url=self._endpoint))

    def end(self, ending: Ending, error: Exception | None = None) -> None:
        """Close for good; whoever waits for an answer gets the error."""
        if self.usable:
            self.usable = False
            self._ended(self, ending)
            if self._transport is not None:
                self._transport.abort()
        self._fail(error or self._closed(ConnectionResetError()))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast(asyncio.Transport, transport)
        self.usable = True

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._size += len(data)
        if self._size > MAX_ANSWER:
            self.end("too_large", UnusableAnswer(f"an answer of more than {MAX_ANSWER} bytes"))
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._spoiled("no HTTP answer")

    def connection_lost(self, error: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self.end("closed", self._closed(error or EOFError()))
        if not self.gone.done():
            self.gone.set_result(None)

    def eof_received(self) -> None:
        """See `asyncio.Protocol`. A turn of the loop before `connection_lost`, in which a request would go nowhere."""
        self.end("closed", self._closed(EOFError()))

    def on_message_begin(self) -> None:
        """See `httptools`. An answer nobody asked for: whatever comes next could be taken for another's."""
        if not self.busy:
            self._spoiled("an answer without a question")
        self._body = self._date = self._encoding = b""
        self._crc = None

    def on_header(self, name: bytes, value: bytes) -> None:
        """See `httptools`."""
        if len(name) not in _LENGTHS:
            return
        match name.lower():
            case b"date":
                self._date = value
            case b"x-amz-crc32":
                self._crc = value
            case b"content-encoding":
                self._encoding = value.lower()

    def on_body(self, body: bytes) -> None:
        """See `httptools`."""
        self._body = self._body + body if self._body else body

    def on_message_complete(self) -> None:
        """See `httptools`."""
        answer = self._answer
        if not self.usable or answer is None:
            return
        if problem := self._problem():
            self._spoiled(problem)
            return
        status = self._parser.get_status_code()
        self.busy, self._answer, self._size = False, None, 0
        if not self._parser.should_keep_alive():
            self.end("closed")
        if not answer.done():
            answer.set_result(Response(status, self._body, self._date))

    def _closed(self, error: Exception) -> Exception:
        kind = Stale if self._stale and not self._size else aws.ConnectionClosedError
        return cast(Exception, kind(endpoint_url=self._endpoint, error=error))

    def _problem(self) -> str:
        status = self._parser.get_status_code()
        if status < _INFORMATIONAL:
            return f"status {status}"
        if self._encoding not in (b"", b"identity"):
            return f"content encoding {self._encoding.decode('latin-1')!r}, which nobody asked for"
        if self._crc is not None and not (self._crc.isdigit() and crc32(self._body) == int(self._crc)):
            return "a wrong checksum"
        return ""

    def _spoiled(self, problem: str) -> None:
        self.end("garbage", UnusableAnswer(problem))

    def _fail(self, error: Exception) -> None:
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_exception(error)
