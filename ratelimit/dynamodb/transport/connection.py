"""`Connection`: one that is kept alive, with one request at a time. Whatever is not plain HTTP/1.1 in order ends it.

A connection may die while this process stands still (blocking code, a frozen container, a suspended machine): the loop
has not been told, and whatever is sent there is lost. So one that was idle is looked at before it is used.
Errors are botocore's own, so that `errors.explain` says the same of both transports.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, Literal, NamedTuple, TypeAlias, cast
from weakref import WeakSet
from zlib import crc32

import httptools
from botocore import exceptions as aws

from ratelimit.dynamodb.errors import ConnectionStale, Place, UnusableAnswer, explain

PORTS: Final = {"http": 80, "https": 443}
# After so many seconds without an answer from one of a name's addresses the next is tried as well (RFC 8305, 8).
_NEXT_ADDRESS_S: Final = 0.25

MAX_ANSWER_BYTES: Final = 1 << 20
"""Of one answer, headers included: an item may have 400 KB, and ours has less than one."""

Ending: TypeAlias = Literal["closed", "timeout", "cancelled", "too_large", "garbage", "idle", "shutdown"]
"""Why a connection ended: counted in `Stats.dropped`."""

STALE_S: Final = 1.0
"""A connection that was idle for so long and then ends without a word has most likely been closed before the request
came. It is sent once more: at worst it is counted twice, and usage reads too high, never too low."""

CLOSE_LOOK_S: Final = 0.001
"""A connection that was idle for less is used without a look."""
_BOOT_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", None)

elapsed: Final[Callable[[], float]] = (
    time.monotonic if _BOOT_CLOCK is None else partial(time.clock_gettime, _BOOT_CLOCK)
)
"""Seconds, with those in which the machine was suspended. (A loop's own time may be as old as its present turn.)"""

_sockets: Final[WeakSet[socket.socket]] = WeakSet()


def new_socket(address: Any) -> socket.socket:
    """Make a socket for one of `getaddrinfo`'s answers, which a forked child does not share."""
    family, kind, protocol = address[:3]
    return unshared(socket.socket(family, kind, protocol))


def unshared(made: socket.socket) -> socket.socket:
    """Return the socket, which a forked child is not to share."""
    _sockets.add(made)
    return made


def _cut_off() -> None:
    """In a forked child, put a dead socket in the place of each: nothing the child does, not even to close it or to
    end, reaches the parent's connections."""
    inherited = [one for one in _sockets if one.fileno() >= 0]
    if not inherited:
        return
    dead, other = socket.socketpair()
    other.close()
    for one in inherited:
        os.dup2(dead.fileno(), one.fileno(), inheritable=False)
    dead.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_cut_off)


def _poll_of(watched: socket.socket) -> Callable[[float], list[Any]]:
    """Return what waits so many milliseconds until something has come on a connection, and returns whether it has."""
    if not hasattr(select, "poll"):
        return partial(_select, watched)
    poll = select.poll()
    poll.register(watched, select.POLLIN)
    return poll.poll


def _select(watched: socket.socket, milliseconds: float) -> list[Any]:
    return select.select([watched], [], [], milliseconds / 1000)[0]


class Endpoint(NamedTuple):
    """Where requests go, and how they are signed."""

    url: str
    host: str
    port: int
    region: str
    tls: ssl.SSLContext | None

    @property
    def host_header(self) -> str:
        """Return the `Host` header, with the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        own = PORTS["https" if self.tls else "http"]
        return host if self.port == own else f"{host}:{self.port}"


class Response:
    """An answer that arrived whole, and unharmed as far as its checksum tells."""

    __slots__ = ("_received", "body", "status")

    def __init__(self, status: int, body: bytes, received: bytes) -> None:
        self.status = status
        self.body = body
        self._received = received

    @property
    def date(self) -> bytes:
        """The `Date` header, in lower case; empty where there was none."""
        return _header(self._received, b"\r\ndate:")


class Connection(asyncio.Protocol):
    """A connection. `usable` while it may take a request; `ended` is called once, when it never will again."""

    def __init__(
        self,
        url: str,
        ended: Callable[[Connection, Ending], None],
        watched: socket.socket,
        new_future: Callable[[], asyncio.Future[Any]] | None = None,
    ) -> None:
        """`new_future` makes what is waited for on an event loop."""
        self.usable = False
        self.since = 0.0
        """When it was last written to or let go, as `elapsed` has it."""
        self.busy = False
        self._url = url
        self._ended = ended
        self._poll = _poll_of(watched)
        self._stale = False
        self._transport: asyncio.Transport | None = None
        self._new_future = new_future
        self.gone: asyncio.Future[None] | None = None if new_future is None else new_future()
        """Done when the socket is closed."""
        self._answer: asyncio.Future[Response] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._received = self._body = b""

    def ask(self, request: bytes, now: float) -> Response | Awaitable[Response]:
        """Send a request; only while `usable`. The future ends with an answer or with one of `boto_errors`, as long as
        somebody calls `expire` in time."""
        assert self._transport is not None
        assert self._new_future is not None
        self._begin(now)
        self._answer = answer = self._new_future()
        self._transport.write(request)
        return answer

    def _begin(self, now: float) -> None:
        assert self.usable
        self.busy = True
        self._stale = now - self.since >= STALE_S
        self.since = now

    def is_quiet(self) -> bool:
        """Return whether nothing has come on an idle one, of which the loop may not have heard yet: its end, most
        likely."""
        return not self._poll(0)

    def expire(self) -> None:
        """End it, for the answer is overdue."""
        self.end("timeout", aws.ReadTimeoutError(endpoint_url=self._url))

    def end(self, ending: Ending, error: Exception | None = None) -> None:
        """Close for good; whoever waits for an answer gets the error."""
        if self.usable:
            self.usable = False
            self._ended(self, ending)
            if self._transport is not None:
                self._transport.abort()
        self._fail(error or self._closed(ConnectionResetError()))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.usable = True

    def data_received(self, data: bytes) -> None:
        self._received += data
        if len(self._received) > MAX_ANSWER_BYTES:
            self.end("too_large", UnusableAnswer(f"an answer of more than {MAX_ANSWER_BYTES} bytes"))
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._spoiled("no HTTP answer")

    def connection_lost(self, error: Exception | None) -> None:
        self.end("closed", self._closed(error or EOFError()))
        if self.gone is not None and not self.gone.done():
            self.gone.set_result(None)

    def eof_received(self) -> None:
        """End it now, a turn of the loop before `connection_lost`, in which a request would go nowhere."""
        self.end("closed", self._closed(EOFError()))

    def on_message_begin(self) -> None:
        # An answer nobody asked for: whatever comes next could be taken for another's.
        if not self.busy:
            self._spoiled("an answer without a question")
        self._body = b""

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if not self.usable:
            return
        status, body, received = self._parser.get_status_code(), self._body, self._received
        # As Amazon answers: the checksum is the last header. (What begins like JSON is not compressed.)
        is_as_ever = received.endswith(b"\r\nx-amz-crc32: %d\r\n\r\n%b" % (crc32(body), body)) and body[:1] == b"{"
        if not (is_as_ever and status >= 200) and (problem := self._problem(status)):
            self._spoiled(problem)
            return
        self.busy, self._received = False, b""
        self._deliver(Response(status, body, received))
        if not self._parser.should_keep_alive():
            self.end("closed")

    def _closed(self, error: Exception) -> Exception:
        kind = ConnectionStale if self._stale and not self._received else aws.ConnectionClosedError
        return cast(Exception, kind(endpoint_url=self._url, error=error))

    def _problem(self, status: int) -> str:
        if status < 200:
            return f"status {status}"
        encoding = _header(self._received, b"\r\ncontent-encoding:")
        if encoding not in (b"", b"identity"):
            return f"content encoding {encoding.decode('latin-1')!r}, which nobody asked for"
        crc = _header(self._received, b"\r\nx-amz-crc32:")
        if crc and not (crc.isdigit() and crc32(self._body) == int(crc)):
            return "a wrong checksum"
        return ""

    def _spoiled(self, problem: str) -> None:
        self.end("garbage", UnusableAnswer(problem))

    def _deliver(self, response: Response) -> None:
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_result(response)

    def _fail(self, error: Exception) -> None:
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_exception(error)


def _header(answer: bytes, name: bytes) -> bytes:
    """Return the value of a header in lower case, as its `name` is, from line break to colon."""
    head = answer[: answer.find(b"\r\n\r\n") + 2].lower()
    start = head.find(name)
    if start < 0:
        return b""
    start += len(name)
    return head[start : head.find(b"\r", start)].strip()


async def open_connection(
    endpoint: Endpoint, place: Place, seconds: float, ended: Callable[[Connection, Ending], None]
) -> Connection:
    """Connect to the first of the host's addresses that takes it. Raise `StoreUnreachable`."""
    import aiohappyeyeballs  # which threads do without

    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(seconds):
            addresses = await loop.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
            connected = await aiohappyeyeballs.start_connection(
                addresses, happy_eyeballs_delay=_NEXT_ADDRESS_S, socket_factory=new_socket
            )
            _, connection = await loop.create_connection(
                lambda: Connection(endpoint.url, ended, connected, loop.create_future),
                sock=connected,
                ssl=endpoint.tls,
                server_hostname=endpoint.host if endpoint.tls else None,
            )
    except ssl.SSLError as error:
        raise explain(aws.SSLError(endpoint_url=endpoint.url, error=error), place) from error
    except OSError as error:  # also TimeoutError, and that of the name's resolution
        raise explain(aws.ConnectTimeoutError(endpoint_url=endpoint.url, error=error), place) from error
    return connection
