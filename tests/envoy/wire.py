"""A client of frames: what it sends is what a test says, and what it gets back can be read as text."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, NamedTuple

from hpack import Decoder, Encoder

from ratelimit.envoy import http2
from ratelimit.envoy.grpc import Call, GrpcProtocol, Method, ServerState
from ratelimit.envoy.http2 import END_HEADERS, END_STREAM, PREFACE, frame

_FIRST = ["DATA", "HEADERS", "PRIORITY", "RST_STREAM", "SETTINGS", "PUSH_PROMISE", "PING", "GOAWAY"]
NAMES = [*_FIRST, "WINDOW_UPDATE", "CONTINUATION"]
ECHO = b"/test.Service/Echo"
HEAD = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", ECHO),
    (b":authority", b"test"),
    (b"content-type", b"application/grpc"),
    (b"te", b"trailers"),
]


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes

    def __str__(self) -> str:
        """Its type, and what matters of it."""
        words = [NAMES[self.kind]]
        if self.stream:
            words.append(str(self.stream))
        if self.kind in (http2.RST_STREAM, http2.GOAWAY):
            words.append(http2.ErrorCode(int.from_bytes(self.payload[-4:], "big")).name)
        if self.flags & 1:
            words.append("END" if self.kind in (http2.DATA, http2.HEADERS) else "ACK")
        return " ".join(words)


class Transport(asyncio.Transport):
    """One that keeps what is written, and reads nothing by itself."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.1", 1234)})
        self.written = bytearray()
        self.writes = 0
        self.state = "open"
        self.reading = True

    def write(self, data: Any) -> None:
        assert self.state == "open", "written after the end"
        self.written += data
        self.writes += 1

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.state = "ended"

    def close(self) -> None:
        self.state = "closed"

    def abort(self) -> None:
        self.state = "aborted"

    def is_closing(self) -> bool:
        return self.state in ("closed", "aborted")

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Clock:
    """A loop whose time a test puts forward."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.ahead = 0.0

    def time(self) -> float:
        return self._loop.time() + self.ahead

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)


def echo(message: bytes, call: Call) -> bytes:
    return message


class Client:
    """A connection without a socket: what is sent is there at once, and so is what comes back."""

    def __init__(self, methods: Mapping[bytes, Method] | None = None, *, greet: bool = True) -> None:
        self.state = ServerState({ECHO: echo} if methods is None else methods)
        self.protocol = GrpcProtocol(self.state)
        self.transport = Transport()
        self.clock = Clock(self.protocol.loop)
        self.protocol.loop = self.clock  # type: ignore[assignment]
        self.protocol.connection_made(self.transport)
        self.encoder = Encoder()
        self.decoder = Decoder()
        if greet:
            self.send(PREFACE, frame(http2.SETTINGS, 0, 0))
            assert [str(each) for each in self.frames()] == ["SETTINGS", "WINDOW_UPDATE", "SETTINGS ACK"]

    def send(self, *frames: bytes) -> None:
        """In one piece."""
        self.protocol.data_received(b"".join(frames))

    def tick(self, seconds: float) -> None:
        """So much later."""
        self.clock.ahead += seconds
        self.protocol.tick(self.clock.time())

    def frames(self) -> list[Frame]:
        """What has come since the last time."""
        data, found = bytes(self.transport.written), []
        self.transport.written.clear()
        while data:
            size = int.from_bytes(data[:3], "big")
            found.append(Frame(data[3], data[4], int.from_bytes(data[5:9], "big"), data[9 : 9 + size]))
            data = data[9 + size :]
        return found

    def said(self) -> list[str]:
        """The same as text, and the end of the connection."""
        return [*map(str, self.frames()), *([self.transport.state] if self.transport.state != "open" else [])]

    def head(self, stream: int, *more: tuple[bytes, bytes], flags: int = END_HEADERS, **changed: bytes) -> bytes:
        """A call's headers; `method=b"GET"` changes one that it has."""
        names = {b":" + name.encode() if name != "te" else b"te": value for name, value in changed.items()}
        fields = [(name, names.get(name, value)) for name, value in HEAD]
        return frame(http2.HEADERS, flags, stream, self.encoder.encode([*fields, *more]))

    def call(self, stream: int, message: bytes = b"hello", *more: tuple[bytes, bytes], **changed: bytes) -> bytes:
        """A whole call."""
        data = prefixed(message)
        ends = range(16_384, len(data), 16_384)
        parts = [frame(http2.DATA, 0, stream, data[end - 16_384 : end]) for end in ends]
        last = frame(http2.DATA, END_STREAM, stream, data[16_384 * len(parts) :])
        return b"".join((self.head(stream, *more, flags=END_HEADERS, **changed), *parts, last))

    async def lose(self) -> None:
        """As when the client is gone."""
        self.protocol.connection_lost(None)
        await asyncio.sleep(0)

    def answers(self) -> dict[int, Answer]:
        """What has come since the last time, by stream."""
        return read_answers(self.frames(), self.decoder)


class Answer(NamedTuple):
    message: bytes | None
    headers: dict[bytes, bytes]

    @property
    def status(self) -> int:
        return int(self.headers[b"grpc-status"])

    @property
    def text(self) -> str:
        return self.headers[b"grpc-message"].decode()


def read_answers(frames: list[Frame], decoder: Decoder) -> dict[int, Answer]:
    """Those of calls that have ended."""
    found: dict[int, Answer] = {}
    data: dict[int, bytes] = {}
    headers: dict[int, dict[bytes, bytes]] = {}
    for kind, flags, stream, payload in frames:
        if kind == http2.DATA:
            data[stream] = data.get(stream, b"") + payload
        elif kind == http2.HEADERS:
            headers.setdefault(stream, {}).update(decoder.decode(payload, raw=True))
            if flags & END_STREAM:
                body = data.get(stream)
                found[stream] = Answer(None if body is None else unprefixed(body), headers[stream])
    return found


def prefixed(message: bytes) -> bytes:
    return len(message).to_bytes(5, "big") + message


def unprefixed(body: bytes) -> bytes:
    assert body[:5] == (len(body) - 5).to_bytes(5, "big")
    return body[5:]
