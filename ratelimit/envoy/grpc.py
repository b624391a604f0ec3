"""gRPC over HTTP/2: unary calls, answered by a function of bytes at once or when what it returns is awaited.

By gRPC's own document, "gRPC over HTTP2" (PROTOCOL-HTTP2.md). Messages are never compressed: a compressed one is
refused with what is accepted, as it says there.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import Awaitable, Callable, Mapping
from enum import IntEnum
from functools import lru_cache, partial
from typing import Final, TypeAlias
from urllib.parse import quote

from ratelimit.envoy.header_block import header_block
from ratelimit.envoy.http2 import Headers, Http2Protocol, Stream
from ratelimit.limiter.deadline import SharedTimer

logger: Final = logging.getLogger("ratelimit.grpc")

MAX_MESSAGE: Final = 65_530
"""With its prefix, what the window of a stream lets in."""
MAX_CALL_S: Final = 10.0
"""The deadline of a call whose caller says none, or a later one."""
_MIN_CALL_S: Final = 0.001
_STEPS: Final = 8
"""Deadlines are told apart by eighths of a doubling, so that few timers do for all: one comes by up to 9 % early, which
is left for the way back."""

_TIMEOUT: Final = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNITS: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_CONTENT_TYPE: Final = re.compile(rb"application/grpc(\+[^;]*)?(;.*)?")
_PLAIN: Final = "".join(chr(code) for code in range(0x20, 0x7F) if code != ord("%"))
"""What a grpc-message has as it is."""
_MAX_TEXT: Final = 1024

HEALTH_CHECK: Final = b"/grpc.health.v1.Health/Check"
_SERVING: Final = b"\x08\x01"
_NOT_SERVING: Final = b"\x08\x02"

_COMMON: Final = ((":status", "200"), ("content-type", "application/grpc"))
_HEAD: Final = header_block(*_COMMON)
_TRAILERS: Final = header_block(("grpc-status", "0"))


class Status(IntEnum):
    """How a call of ours ends. (gRPC's statuscodes.md)"""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


class GrpcError(Exception):
    """What a method raises to answer with a status."""

    def __init__(self, status: Status, message: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Call:
    """What a method is told of a call beside the message."""

    __slots__ = ("deadline", "metadata", "peer")

    def __init__(self, peer: str, deadline: float | None, metadata: Headers) -> None:
        self.peer = peer
        self.deadline = deadline
        """When the caller gives up, as the loop's time has it; None where it does not say."""
        self.metadata = metadata


Method: TypeAlias = Callable[[bytes, Call], "bytes | Awaitable[bytes]"]


class Running:
    """A call that is awaited, which its deadline ends."""

    __slots__ = ("answer", "connection", "stream")

    def __init__(self, connection: GrpcProtocol, stream: Stream[CallTarget], answer: asyncio.Future[bytes]) -> None:
        self.connection = connection
        self.stream = stream
        self.answer = answer

    def done(self) -> bool:
        return self.answer.done()

    def expire(self) -> None:
        self.connection.fail(self.stream, GrpcError(Status.DEADLINE_EXCEEDED, "no answer in time"))
        self.connection.flush_soon()
        self.answer.cancel()


class CallTarget:
    """What the headers of a call stand for: a method, or what it is refused with."""

    __slots__ = ("metadata", "method", "refusal", "timeout")

    def __init__(self, method: Method | None, metadata: Headers, timeout: float | None, refusal: bytes) -> None:
        self.method = method
        self.metadata = metadata
        self.timeout = timeout
        self.refusal = refusal


class ServerState:
    """What the connections of a listener share. `oversized` is what a call is answered whose message is too large to be
    read; None for an error, upon which some callers go on as if they had not asked."""

    def __init__(self, methods: Mapping[bytes, Method], oversized: bytes | None = None) -> None:
        self.oversized = oversized
        self.methods: dict[bytes, Method] = {HEALTH_CHECK: self._check_health, **methods}
        self.connections: set[Http2Protocol[CallTarget]] = set()
        self.draining = False
        self._services = {b"", *(path.split(b"/")[1] for path in methods)}
        self._timers: dict[int, SharedTimer[Running]] = {}

    def timer(self, timeout: float) -> SharedTimer[Running]:
        """Return the timer for calls with this timeout, or a little less."""
        step = math.floor(math.log2(min(max(timeout, _MIN_CALL_S), MAX_CALL_S)) * _STEPS)
        if step not in self._timers:
            self._timers[step] = SharedTimer(2 ** (step / _STEPS), Running.expire)
        return self._timers[step]

    def _check_health(self, message: bytes, call: Call) -> bytes:
        """Answer `grpc.health.v1.Health/Check`: field 1 of the request is a service's name, of the answer its state."""
        name = message[2:]
        if message and message[:2] != bytes((0x0A, len(name) % 128)):
            raise GrpcError(Status.INVALID_ARGUMENT, "not a HealthCheckRequest")
        if name not in self._services:
            raise GrpcError(Status.NOT_FOUND, "unknown service")
        return _NOT_SERVING if self.draining else _SERVING


class GrpcProtocol(Http2Protocol[CallTarget]):
    """A connection of a gRPC client."""

    def __init__(self, state: ServerState) -> None:
        super().__init__(state.connections)
        self._state = state
        self._running: dict[int, asyncio.Future[bytes]] = {}

    def resolve(self, headers: Headers) -> CallTarget:
        """Find the method and the timeout; or what is wrong, in HTTP's words where it is no call of gRPC's."""
        known = dict(headers)
        metadata = [header for header in headers if header[0][:1] != b":"]
        timeout = _TIMEOUT.fullmatch(known.get(b"grpc-timeout", b""))
        seconds = int(timeout[1]) * _UNITS[timeout[2]] if timeout else None
        method = self._state.methods.get(known[b":path"])
        if known[b":method"] != b"POST":
            refusal = header_block((":status", "405"), ("allow", "POST"))
        elif not _CONTENT_TYPE.fullmatch(known.get(b"content-type", b"")):
            refusal = header_block((":status", "415"))
        elif method is None:
            refusal = status_block(Status.UNIMPLEMENTED, "unknown method")
        elif seconds is None and b"grpc-timeout" in known:
            refusal = status_block(Status.INTERNAL, "malformed grpc-timeout")
        elif seconds == 0:
            refusal = status_block(Status.DEADLINE_EXCEEDED, "no time is left")
        else:
            return CallTarget(method, metadata, seconds, b"")
        return CallTarget(None, metadata, None, refusal)

    def on_part(self, stream: Stream[CallTarget]) -> None:
        """Refuse what no more data makes right, without waiting for it."""
        refusal, oversized = stream.target.refusal, self._state.oversized
        if not refusal and oversized is not None and _is_oversized(stream.body):
            logger.warning("a message of %s is too large to be read", self.peer)
            self._succeed(stream, oversized)
        elif refusal := refusal or _misframed(stream.body, ended=False):
            self.answer(stream, refusal)

    def on_request(self, stream: Stream[CallTarget]) -> None:
        target, body = stream.target, stream.body
        method = target.method
        if method is None or body[:1] != b"\0" or len(body) - 5 != int.from_bytes(body[1:5], "big"):
            self.answer(stream, target.refusal or _misframed(body, ended=True))
            return
        deadline = None if target.timeout is None else stream.opened + target.timeout
        try:
            answer = method(body[5:], Call(self.peer, deadline, target.metadata))
        except Exception as error:  # noqa: BLE001 (the caller is told, and the log; other calls go on)
            self.fail(stream, error)
            return
        if isinstance(answer, bytes):
            self._succeed(stream, answer)
        else:
            self._wait(stream, answer, deadline)

    def on_reset(self, stream: Stream[CallTarget]) -> None:
        if answer := self._running.pop(stream.id, None):
            answer.cancel()

    def fail(self, stream: Stream[CallTarget], error: BaseException) -> None:
        if not isinstance(error, GrpcError):
            logger.error("a call of %s failed", self.peer, exc_info=error)
            error = GrpcError(Status.INTERNAL, "internal error")
        if not stream.answered:
            self.answer(stream, status_block(error.status, error.message))

    def _succeed(self, stream: Stream[CallTarget], message: bytes) -> None:
        self.answer(stream, _HEAD, len(message).to_bytes(5, "big") + message, _TRAILERS)

    def _wait(self, stream: Stream[CallTarget], awaitable: Awaitable[bytes], deadline: float | None) -> None:
        answer = asyncio.ensure_future(awaitable)
        self._running[stream.id] = answer
        answer.add_done_callback(partial(self._done, stream))
        left = MAX_CALL_S if deadline is None else deadline - self.loop.time()
        self._state.timer(left).watch(Running(self, stream, answer), self.loop)

    def _done(self, stream: Stream[CallTarget], answer: asyncio.Future[bytes]) -> None:
        self._running.pop(stream.id, None)
        if answer.cancelled():
            self.fail(stream, GrpcError(Status.CANCELLED, "cancelled"))
        elif error := answer.exception():
            self.fail(stream, error)
        elif not stream.answered:
            self._succeed(stream, answer.result())
        self.flush_soon()


@lru_cache(256)
def status_block(status: Status, message: str = "", *more: tuple[str, str]) -> bytes:
    """Return an answer that is a status alone."""
    text = quote(message[:_MAX_TEXT], safe=_PLAIN)
    return header_block(*_COMMON, ("grpc-status", str(int(status))), ("grpc-message", text), *more)


def _is_oversized(body: bytes) -> bool:
    return len(body) >= 5 and body[:1] == b"\0" and int.from_bytes(body[1:5], "big") > MAX_MESSAGE


def _misframed(body: bytes, *, ended: bool) -> bytes:
    """Return a status for what is wrong with the request so far: it is to be one message, with its prefix."""
    prefixed = len(body) >= 5
    size = int.from_bytes(body[1:5], "big")
    if body[:1] > b"\0":
        return _COMPRESSED
    if _is_oversized(body):
        return status_block(Status.RESOURCE_EXHAUSTED, f"a message of {size} bytes, where {MAX_MESSAGE} are the most")
    if prefixed and len(body) > size + 5:
        return status_block(Status.UNIMPLEMENTED, "more than one message")
    if ended and (not prefixed or len(body) < size + 5):
        return status_block(Status.INTERNAL, "the request ends before its message")
    return b""


_COMPRESSED: Final = status_block(
    Status.UNIMPLEMENTED, "compressed messages are not accepted", ("grpc-accept-encoding", "identity")
)
