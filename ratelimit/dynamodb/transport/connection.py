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
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any, Final, Literal, NamedTuple, TypeAlias, cast
from weakref import WeakSet
from zlib import crc32

import aiohappyeyeballs
import httptools
from botocore import exceptions as aws

from ratelimit.blocking_wait import BlockingCall, wait_for
from ratelimit.dynamodb.errors import ConnectionStale, Place, UnusableAnswer, explain
from ratelimit.errors import StoreUnavailable

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
    except OSError as error:  # also TimeoutError, and that of the name's resolution
        raise not_connected(error, endpoint, place) from error
    return connection


def not_connected(error: OSError, endpoint: Endpoint, place: Place) -> StoreUnavailable:
    kind = aws.SSLError if isinstance(error, ssl.SSLError) else aws.ConnectTimeoutError
    return explain(kind(endpoint_url=endpoint.url, error=error), place)


_READ_BYTES: Final = 1 << 16


class ThreadConnection(Connection):
    """A connection whose answer is read by the thread that waits for it.

    Run by a `Runner`, whose lock is let go of only while the thread waits for the socket.
    """

    def __init__(
        self, endpoint: Endpoint, connected: socket.socket, ended: Callable[[Connection, Ending], None], timeout: float
    ) -> None:
        super().__init__(endpoint.url, ended, connected)
        self._socket = connected
        self._timeout = timeout
        self._request = b""
        self._response: Response | None = None
        self._error: Exception | None = None
        self._transport = cast(asyncio.Transport, _Closing(self._close))
        self.usable = True

    def is_quiet(self) -> bool:
        """Return whether nothing has come on an idle one but TLS's own, as the tickets after a handshake."""
        if super().is_quiet():
            return True
        if not isinstance(self._socket, ssl.SSLSocket):
            return False
        try:
            self._socket.recv(1)
        except ssl.SSLWantReadError:
            return True
        except OSError:
            return False
        return False

    def ask(self, request: bytes, now: float) -> Response:
        """Send a request; only while `usable`. Return the answer, or raise one of `boto_errors`."""
        self._begin(now)
        self._request = request
        step: BlockingCall[bytes] = self._exchange
        try:
            while self.busy and self.usable:
                if data := wait_for(step):
                    self.data_received(data)
                else:
                    self.eof_received()
                step = self._receive
        except TimeoutError:
            self.expire()
        except OSError as error:
            self.connection_lost(error)
        finally:
            self.busy = False
            if not self.usable:
                self._socket.close()
        response, self._response = self._response, None
        if response is None:
            assert self._error is not None
            raise self._error
        return response

    def _deliver(self, response: Response) -> None:
        self._response = response

    def _fail(self, error: Exception) -> None:
        self._error = self._error or error

    def _exchange(self, left: float) -> bytes:
        """Send, and return what comes: at the first attempt, as is almost always possible."""
        request, sent = self._request, 0
        try:
            sent = self._socket.send(request)
            if sent == len(request):
                # (Rounded up to a millisecond, so that the time is over when it says so.)
                if not self._poll(1000 * (left if left < self._timeout else self._timeout)):
                    raise TimeoutError
                return self._socket.recv(_READ_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        due = self.since + left
        while sent < len(request):
            self._wait_to_write(due)
            with suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                sent += self._socket.send(request[sent:])
        return self._receive(due - elapsed())

    def _wait_to_write(self, due: float) -> None:
        left = min(due, self.since + self._timeout) - elapsed()
        if left <= 0 or not select.select([], [self._socket], [], left)[1]:
            raise TimeoutError

    def _receive(self, left: float) -> bytes:
        """Return what comes. Raise `TimeoutError` where nothing has come by then."""
        now = elapsed()
        due = min(now + left, self.since + self._timeout)
        while now < due and self._poll((due - now) * 1000):
            try:
                return self._socket.recv(_READ_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError):
                now = elapsed()
        raise TimeoutError

    def _close(self) -> None:
        """Another thread may wait for it, which closes it then: its number is not to be another's by then."""
        if not self.busy:
            self._socket.close()
            return
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


class _Closing:
    """What stands for an asyncio transport, of which a connection needs only how to end."""

    def __init__(self, abort: Callable[[], None]) -> None:
        self.abort = abort


def dial(endpoint: Endpoint, timeout: float, left: float) -> socket.socket:
    """Return a socket that is connected, to the first of the host's addresses that takes it. Raise `OSError`."""
    due = monotonic() + min(timeout, left)
    failed: OSError = TimeoutError()
    addresses = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    for number, address in enumerate(addresses):
        remaining = due - monotonic()
        if remaining <= 0:
            break
        made = new_socket(address)
        try:
            made.settimeout(remaining / (len(addresses) - number))
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made.connect(address[4])
            return _secured(endpoint, made, due)
        except OSError as error:
            made.close()
            failed = error
    raise failed


def _secured(endpoint: Endpoint, connected: socket.socket, due: float) -> socket.socket:
    if endpoint.tls is not None:
        connected.settimeout(max(0.001, due - monotonic()))
        connected = unshared(endpoint.tls.wrap_socket(connected, server_hostname=endpoint.host))
    connected.setblocking(False)
    return connected
