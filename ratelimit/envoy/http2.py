"""`Http2Protocol`: a server's side of HTTP/2 (RFC 9113) in cleartext with prior knowledge, for small requests that are
answered whole. Sections are those of the RFC.

What a client may cost is bounded: a request by a stream's window, which is never opened further; its headers by their
size; answers that it does not read by a pause of reading; and what carries nothing (resets, pings, settings, empty
frames and so on) by an allowance that answered requests and time refill.
"""

from __future__ import annotations

import asyncio
import logging
import re
from enum import IntEnum
from struct import Struct
from typing import Final, Generic, TypeAlias, TypeVar, cast

from ratelimit.envoy.header_block import BlockDecoder, BlockError, BlockTooLarge, Header

logger: Final = logging.getLogger("ratelimit.grpc")

T = TypeVar("T")
Headers: TypeAlias = "list[Header]"

MAX_STREAMS: Final = 256
MAX_HEADERS: Final = 2**17
"""Bytes of a request's headers, as they arrive and, counted as section 6.5.2 does, as they are."""
WINDOW: Final = 2**20
"""Of a connection."""
REQUEST_TIMEOUT_S: Final = 10.0
"""For a frame, the headers or a request to arrive whole, once begun; for the preface, once connected."""
STALLED_S: Final = 20.0
"""So long an answer may wait for a client to read, or to open a window."""
IDLE_S: Final = 600.0
CLOSING_S: Final = 2.0
"""For the client to close its side, after the last frame."""
ALLOWANCE: Final = 1000
"""Frames that carry nothing which a connection may send ahead of what refills it."""
PER_ANSWER: Final = 10
PER_TICK: Final = 100
PER_FAULT: Final = 50
"""What a malformed request takes of the allowance: each is logged."""

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
ACK: Final = 0x1
END_STREAM: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
WITH_PRIORITY: Final = 0x20

_OF_CONNECTION: Final = (SETTINGS, PING, GOAWAY)
_OF_STREAMS: Final = (PRIORITY, RST_STREAM, CONTINUATION)
_SIZES: Final = {PRIORITY: 5, RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}
_MAX_FRAME: Final = 16_384
_MAX_INT: Final = 2**31 - 1
_CACHED_HEADS: Final = 64
_CACHED_BLOCK: Final = 256
_FRAME: Final = Struct(">IBI")
"""Length and type, flags, stream."""
_WORD: Final = Struct(">I")
_SETTING: Final = Struct(">HI")
_REQUIRED: Final = {b":method", b":scheme", b":path"}
_PSEUDO: Final = _REQUIRED | {b":authority"}
_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_VALUE: Final = re.compile(rb"(?![ \t])[^\0\r\n]*(?<![ \t])")
_HOP_BY_HOP: Final = {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"}


class ErrorCode(IntEnum):
    """Those that a server of ours sends. (Section 7)"""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


class Http2Error(Exception):
    """A fault of the client's that ends the connection."""

    def __init__(self, code: ErrorCode, why: str) -> None:
        super().__init__(why)
        self.code = code


class StreamError(Http2Error):
    """One that ends the stream alone."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return a frame's bytes."""
    return _FRAME.pack(len(payload) << 8 | kind, flags, stream) + payload


class Stream(Generic[T]):
    """A request, and the part of its answer that waits for a window."""

    __slots__ = ("answered", "body", "ended", "id", "length", "opened", "queued", "target", "trailers", "window")

    def __init__(self, stream_id: int, target: T, length: int, window: int, opened: float) -> None:
        self.id = stream_id
        self.target = target
        """What its headers stand for."""
        self.length = length
        """What its headers say of the body's length; -1 where they do not."""
        self.window = window
        self.opened = opened
        self.body = b""
        self.ended = False
        """Whether the request is here whole."""
        self.answered = False
        """Whether it needs no answer any more."""
        self.queued = b""
        self.trailers = b""


class Http2Protocol(asyncio.Protocol, Generic[T]):
    """A connection. A subclass answers what `on_request` gives it, with `answer` and later, if so, `flush_soon`."""

    def __init__(self, connections: set[Http2Protocol[T]]) -> None:
        self.peer = ""
        self.streams: dict[int, Stream[T]] = {}
        self.loop = asyncio.get_running_loop()
        self._connections = connections
        """Those that are open."""
        self._transport: asyncio.Transport
        self._buffer = b""
        self._out: list[bytes] = []
        self._flushing = False
        self._prefaced = False
        self._decoder = BlockDecoder(MAX_HEADERS)
        self._heads: dict[bytes, tuple[T, int]] = {}
        """What header blocks stand for as long as the table is as it is, which they do not change."""
        self._block: bytes | None = None
        """Headers that go on in the next frame, of the stream and with the flags below."""
        self._block_stream = self._block_flags = 0
        self._last_stream = 0
        self._discarded: dict[int, None] = {}
        """Streams that were ended while the client may still have been sending: what arrives of them is ignored."""
        self._window = self._stream_window = 65_535
        """What may be sent, and what a new stream may be sent."""
        self._credit = 0
        """Received bytes that the client's window is still to be opened by."""
        self._allowance = ALLOWANCE
        self._queued: dict[int, Stream[T]] = {}
        """Streams whose answer waits for a window."""
        self._read_at = self._partial_since = self.loop.time()
        self._partial = True
        """Whether something has begun, at `_partial_since`, and not ended: the preface, a frame, headers."""
        self._paused = False
        self._stalled_since = 0.0
        self._leave_at: float | None = None
        self._left = False
        """Whether the last GOAWAY was sent: no stream is to follow."""
        self._closing: float | None = None

    # --- for subclasses -----------------------------------------------------------------------------------------------

    def resolve(self, headers: Headers) -> T:
        """Return what the headers of a request stand for. Not called again for headers that are repeated."""
        raise NotImplementedError

    def on_part(self, stream: Stream[T]) -> None:
        """A part of a request has arrived, of the body maybe nothing. It may be answered already.

        It has to be once the body is too large: all of it is kept."""

    def on_request(self, stream: Stream[T]) -> None:
        raise NotImplementedError

    def on_reset(self, stream: Stream[T]) -> None:
        """Nobody waits for the answer to this request any more."""

    def answer(self, stream: Stream[T], head: bytes, body: bytes = b"", trailers: bytes = b"") -> None:
        """Answer with header blocks (each of one frame) around a body; without a body, with `head` alone."""
        stream.answered = True
        size = len(body)
        if not size:
            self._out.append(_FRAME.pack(len(head) << 8 | HEADERS, END_HEADERS | END_STREAM, stream.id) + head)
            self._finish(stream)
        elif size <= self._window and size <= stream.window and size <= _MAX_FRAME:
            self._window -= size
            self._out += (
                _FRAME.pack(len(head) << 8 | HEADERS, END_HEADERS, stream.id),
                head,
                _FRAME.pack(size << 8, 0, stream.id),
                body,
                _FRAME.pack(len(trailers) << 8 | HEADERS, END_HEADERS | END_STREAM, stream.id),
                trailers,
            )
            self._finish(stream)
        else:
            self._out.append(frame(HEADERS, END_HEADERS, stream.id, head))
            stream.queued, stream.trailers = body, trailers
            if not self._queued and not self._paused:
                self._stalled_since = self.loop.time()
            self._queued[stream.id] = stream
            self._send_queued(stream)

    def flush_soon(self) -> None:
        """Send what was answered since, together with what else is in this turn of the loop."""
        if not self._flushing:
            self._flushing = True
            self.loop.call_soon(self._flush)

    # --- for the listener ---------------------------------------------------------------------------------------------

    def leave(self, at: float) -> None:
        """Tell the client to send no more requests. Answer those that come by then, of the loop's time, and close.

        Who has not asked yet is told with the first answer: told before, it would connect again, and never be answered.
        """
        if self._leave_at is None and self._closing is None:
            self._leave_at = at
            if self._last_stream:
                self._go_away(ErrorCode.NO_ERROR, _MAX_INT)
                self._flush()

    def tick(self, now: float, allowance: int = 0) -> None:
        """Close what has waited too long. To be called again and again, with what time adds to the allowance."""
        self._allowance = min(ALLOWANCE, self._allowance + allowance)
        if self._closing is not None:
            if now - self._closing > CLOSING_S:
                self._transport.abort()
            return
        if (self._paused or self._queued) and now - self._stalled_since > STALLED_S:
            self._fail(Http2Error(ErrorCode.ENHANCE_YOUR_CALM, "it does not read what it is answered"))
            self._transport.abort()
        elif self._partial and now - self._partial_since > REQUEST_TIMEOUT_S:
            self._fail(Http2Error(ErrorCode.NO_ERROR, "what it began to send has not arrived in time"))
        else:
            self._tick_streams(now)
            self._tick_leaving(now)
            self._flush()

    def cut_off(self) -> None:
        self._transport.abort()

    def _tick_streams(self, now: float) -> None:
        for stream in list(self.streams.values()):
            if not stream.ended and not stream.answered and now - stream.opened > REQUEST_TIMEOUT_S:
                self._reset(stream.id, ErrorCode.CANCEL)
        if not self.streams and now - self._read_at > IDLE_S:
            self.leave(now + CLOSING_S)

    def _tick_leaving(self, now: float) -> None:
        if self._leave_at is not None and now >= self._leave_at and not self._left:
            self._left = True
            self._go_away(ErrorCode.NO_ERROR, self._last_stream)
        if self._left and not self.streams and not self._paused:
            self._end()

    # --- asyncio's ----------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        name = transport.get_extra_info("peername")
        self.peer = "{}:{}".format(*name) if isinstance(name, tuple) else "unix"
        self._connections.add(self)
        settings = _SETTING.pack(0x3, MAX_STREAMS) + _SETTING.pack(0x6, MAX_HEADERS)
        credit = _WORD.pack(WINDOW - 65_535)
        self._transport.write(frame(SETTINGS, 0, 0, settings) + frame(WINDOW_UPDATE, 0, 0, credit))

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._drop_streams()

    def eof_received(self) -> None:
        """Have the connection closed: a client that has closed its side waits for nothing any more."""
        self._drop_streams()

    def pause_writing(self) -> None:
        """Read no more while the client does not read either."""
        if not self._queued:
            self._stalled_since = self.loop.time()
        self._paused = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._paused = False
        self._stalled_since = self.loop.time()
        self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Take every frame that is whole, and send what came of them in one write."""
        if self._closing is not None:
            return
        self._read_at = self.loop.time()
        if self._buffer:
            data = self._buffer + data
        try:
            position = self._frames(data, 0) if self._prefaced else self._preface(data)
        except Http2Error as error:
            self._fail(error)
            return
        self._buffer = data[position:]
        partial = position < len(data) or self._block is not None or not self._prefaced
        if partial and (not self._partial or (position and self._block is None)):
            self._partial_since = self._read_at
        self._partial = partial
        if self._credit > WINDOW // 2:
            self._out.append(frame(WINDOW_UPDATE, 0, 0, _WORD.pack(self._credit)))
            self._credit = 0
        self._flush()

    def _preface(self, data: bytes) -> int:
        """Take frames after the preface, of which the first has to be a SETTINGS. (Section 3.4)"""
        if data[:24] != PREFACE[: len(data)] or (len(data) > 28 and (data[27] != SETTINGS or data[28] & ACK)):
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "it does not begin as HTTP/2 with prior knowledge does")
        self._prefaced = len(data) > 28
        return self._frames(data, 24) if self._prefaced else 0

    def _frames(self, data: bytes, position: int) -> int:
        """Take the frames from a position on; return where the first one begins that is not whole."""
        size = len(data)
        while size - position >= 9:
            word, flags, stream_id = _FRAME.unpack_from(data, position)
            end = position + 9 + (word >> 8)
            if word >> 8 > _MAX_FRAME:
                raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "a frame is larger than 16,384 bytes")
            if end > size:
                break
            self._frame(word & 0xFF, flags, stream_id & _MAX_INT, data[position + 9 : end])
            position = end
        return position

    def _frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if self._block is not None and kind != CONTINUATION:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "headers are interrupted by another frame")
        try:
            if kind == DATA:
                self._on_data(flags, stream_id, payload)
            elif kind == HEADERS:
                self._on_headers(flags, stream_id, payload)
            else:
                self._spend(1)
                self._on_control(kind, flags, stream_id, payload)
        except StreamError as error:
            if error.code not in (ErrorCode.REFUSED_STREAM, ErrorCode.STREAM_CLOSED):
                logger.warning("a request of %s is refused: %s (%s)", self.peer, error, error.code.name)
                self._spend(PER_FAULT)
            self._spend(1)
            self._reset(stream_id, error.code)

    # --- requests -----------------------------------------------------------------------------------------------------

    def _on_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        size = len(payload)
        self._credit += size
        if self._credit > WINDOW:
            raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "more data than the connection's window")
        stream = self.streams.get(stream_id)
        if stream is None or stream.ended:
            self._not_open(stream_id)
            return
        if flags & PADDED:
            payload = _unpadded(payload)
            if len(payload) < size and not flags & END_STREAM:
                self._out.append(frame(WINDOW_UPDATE, 0, stream_id, _WORD.pack(size - len(payload))))
        if not payload and not flags & END_STREAM:
            self._spend(1)
        if not stream.answered:
            stream.body = stream.body + payload if stream.body else payload
        self._part(stream, flags)

    def _on_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if not stream_id & 1:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "headers on a stream that clients do not open")
        if flags & PADDED:
            payload = _unpadded(payload)
        if flags & WITH_PRIORITY:
            if len(payload) < 5:
                raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "headers too short for their priority")
            payload = payload[5:]
        if flags & END_HEADERS:
            self._headers(flags, stream_id, payload)
        else:
            self._block, self._block_stream, self._block_flags = payload, stream_id, flags

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        if self._block is None or stream_id != self._block_stream:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "a continuation of nothing")
        self._block += payload
        if len(self._block) > MAX_HEADERS:
            raise Http2Error(ErrorCode.ENHANCE_YOUR_CALM, "headers are too large")
        if flags & END_HEADERS:
            block, self._block = self._block, None
            self._headers(self._block_flags, stream_id, block)

    def _headers(self, flags: int, stream_id: int, block: bytes) -> None:
        if stream_id > self._last_stream:
            if self._leave_at is not None and not self._last_stream:
                self._go_away(ErrorCode.NO_ERROR, _MAX_INT)
            self._last_stream = stream_id
            target, length = self._heads.get(block) or self._head(block)
            if len(self.streams) >= MAX_STREAMS or self._left:
                raise StreamError(ErrorCode.REFUSED_STREAM, "too many streams")
            stream = Stream(stream_id, target, length, self._stream_window, self._read_at)
            self.streams[stream_id] = stream
            self._part(stream, flags)
        else:
            self._trailers(flags, stream_id, block)

    def _head(self, block: bytes) -> tuple[T, int]:
        headers = self._decode(block)
        length = _check_head(headers)
        head = (self.resolve(headers), length)
        if len(self._heads) >= _CACHED_HEADS:
            self._heads.clear()
        if not self._decoder.changed and len(block) <= _CACHED_BLOCK:
            self._heads[block] = head
        return head

    def _trailers(self, flags: int, stream_id: int, block: bytes) -> None:
        headers = self._decode(block)
        self._spend(1)
        stream = self.streams.get(stream_id)
        if stream is None and stream_id not in self._discarded:
            if stream_id < self._last_stream:
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, "a stream with a lower number than one before")
            raise Http2Error(ErrorCode.STREAM_CLOSED, "headers on a closed stream")
        if stream is None:
            return
        if stream.ended:
            raise StreamError(ErrorCode.STREAM_CLOSED, "headers after the end")
        if not flags & END_STREAM:
            raise StreamError(ErrorCode.PROTOCOL_ERROR, "headers in the middle of a request")
        _check_fields(headers)
        self._part(stream, flags)

    def _decode(self, block: bytes) -> Headers:
        try:
            headers = self._decoder.decode(block)
        except BlockError as error:
            large = isinstance(error, BlockTooLarge)
            code = ErrorCode.ENHANCE_YOUR_CALM if large else ErrorCode.COMPRESSION_ERROR
            raise Http2Error(code, str(error)) from error
        if self._decoder.changed:
            self._heads.clear()
        return headers

    def _part(self, stream: Stream[T], flags: int) -> None:
        stream.ended = bool(flags & END_STREAM)
        if stream.answered:
            return
        if not stream.ended:
            self.on_part(stream)
        elif stream.length >= 0 and stream.length != len(stream.body):
            raise StreamError(ErrorCode.PROTOCOL_ERROR, "a body of another length than its headers say")
        else:
            self.on_request(stream)

    def _not_open(self, stream_id: int) -> None:
        """Answer what came on a stream that is not open, or open no more for the client."""
        self._check_begun(stream_id)
        self._spend(1)
        if stream_id not in self._discarded:
            raise StreamError(ErrorCode.STREAM_CLOSED, "data after the end")

    def _check_begun(self, stream_id: int) -> None:
        if not stream_id & 1 or stream_id > self._last_stream:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "a frame on a stream that was never begun")

    # --- what frames say of streams and of the connection -------------------------------------------------------------

    def _on_control(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        """Take a frame of another type than DATA and HEADERS; ignore an unknown one (section 5.5), and priorities."""
        _check_shape(kind, stream_id, len(payload))
        if kind == WINDOW_UPDATE:
            self._on_window_update(stream_id, _WORD.unpack(payload)[0] & _MAX_INT)
        elif kind == CONTINUATION:
            self._on_continuation(flags, stream_id, payload)
        elif kind == RST_STREAM:
            self._on_rst_stream(stream_id)
        elif kind == SETTINGS:
            self._on_settings(flags, payload)
        elif kind == PING and not flags & ACK:
            self._out.append(frame(PING, ACK, 0, payload))
        elif kind == GOAWAY:
            self.leave(self._read_at + CLOSING_S)
        elif kind == PUSH_PROMISE:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "clients do not push")

    def _on_rst_stream(self, stream_id: int) -> None:
        self._check_begun(stream_id)
        if (stream := self._drop(stream_id)) is not None:
            self.on_reset(stream)

    def _on_settings(self, flags: int, payload: bytes) -> None:
        if len(payload) % 6 or (flags & ACK and payload):
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "settings that have not 6 bytes each")
        if flags & ACK:
            return
        settings: dict[int, int] = dict(_SETTING.iter_unpack(payload))
        if settings.get(0x2, 0) > 1 or not 16_384 <= settings.get(0x5, 16_384) < 2**24:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "a setting has a value that it cannot have")
        self._resize(settings.get(0x4, self._stream_window))
        self._out.append(frame(SETTINGS, ACK, 0))
        self._send_all_queued()

    def _resize(self, stream_window: int) -> None:
        """Open or close the window of every stream by what a new one gets more or less. (Section 6.9.2)"""
        change = stream_window - self._stream_window
        if stream_window > _MAX_INT or any(each.window + change > _MAX_INT for each in self.streams.values()):
            raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "a window is too large")
        self._stream_window = stream_window
        for stream in self.streams.values():
            stream.window += change

    def _on_window_update(self, stream_id: int, more: int) -> None:
        if not stream_id:
            self._window = _opened(self._window, more, Http2Error)
            self._send_all_queued()
            return
        self._check_begun(stream_id)
        if (stream := self.streams.get(stream_id)) is not None:
            stream.window = _opened(stream.window, more, StreamError)
            if stream.queued:
                self._send_queued(stream)

    def _spend(self, units: int) -> None:
        self._allowance -= units
        if self._allowance < 0:
            raise Http2Error(ErrorCode.ENHANCE_YOUR_CALM, "too many frames that carry nothing")

    # --- what is sent -------------------------------------------------------------------------------------------------

    def _send_all_queued(self) -> None:
        for stream in list(self._queued.values()):
            if self._window <= 0:
                return
            self._send_queued(stream)

    def _send_queued(self, stream: Stream[T]) -> None:
        while (size := min(self._window, stream.window, _MAX_FRAME, len(stream.queued))) > 0:
            self._out.append(frame(DATA, 0, stream.id, stream.queued[:size]))
            stream.queued = stream.queued[size:]
            stream.window -= size
            self._window -= size
            self._stalled_since = self.loop.time()
        if not stream.queued:
            self._out.append(frame(HEADERS, END_HEADERS | END_STREAM, stream.id, stream.trailers))
            self._finish(stream)

    def _finish(self, stream: Stream[T]) -> None:
        """Forget a stream that is answered; a client that still sends is told that nobody needs it (section 8.1)."""
        self._drop(stream.id)
        if not stream.ended:
            self._send_reset(stream.id, ErrorCode.NO_ERROR)
        if self._allowance < ALLOWANCE:
            self._allowance += PER_ANSWER

    def _drop(self, stream_id: int) -> Stream[T] | None:
        stream = self.streams.pop(stream_id, None)
        if stream is not None:
            stream.answered = True
            if self._queued:
                self._queued.pop(stream_id, None)
        return stream

    def _reset(self, stream_id: int, code: ErrorCode) -> None:
        self._send_reset(stream_id, code)
        if (stream := self._drop(stream_id)) is not None:
            self.on_reset(stream)

    def _send_reset(self, stream_id: int, code: ErrorCode) -> None:
        self._out.append(frame(RST_STREAM, 0, stream_id, _WORD.pack(code)))
        self._discarded[stream_id] = None
        if len(self._discarded) > ALLOWANCE:
            del self._discarded[next(iter(self._discarded))]

    def _go_away(self, code: ErrorCode, last_stream: int) -> None:
        self._out.append(frame(GOAWAY, 0, 0, _WORD.pack(last_stream) + _WORD.pack(code)))

    def _flush(self) -> None:
        self._flushing = False
        if self._out:
            if not self._transport.is_closing():
                self._transport.write(b"".join(self._out))
            self._out.clear()

    def _fail(self, error: Http2Error) -> None:
        """Close the connection. (Section 5.4.1)"""
        logger.warning("the connection of %s is closed: %s (%s)", self.peer, error, error.code.name)
        self._go_away(error.code, self._last_stream)
        self._end()

    def _end(self) -> None:
        """Send what is left and the end, and take nothing in any more: a connection that is closed upon data nobody has
        read is reset, and the client might never see the last frames."""
        self._flush()
        self._drop_streams()
        if self._transport.is_closing():
            return
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()

    def _drop_streams(self) -> None:
        self._closing = self.loop.time()
        for stream in list(self.streams.values()):
            self._drop(stream.id)
            self.on_reset(stream)


def _opened(window: int, more: int, fault: type[Http2Error]) -> int:
    if not more:
        raise fault(ErrorCode.PROTOCOL_ERROR, "a window opened by nothing")
    if window + more > _MAX_INT:
        raise fault(ErrorCode.FLOW_CONTROL_ERROR, "a window is too large")
    return window + more


def _check_shape(kind: int, stream_id: int, size: int) -> None:
    if stream_id and kind in _OF_CONNECTION:
        raise Http2Error(ErrorCode.PROTOCOL_ERROR, "a frame of the connection on a stream")
    if not stream_id and kind in _OF_STREAMS:
        raise Http2Error(ErrorCode.PROTOCOL_ERROR, "a frame of a stream on none")
    if size != _SIZES.get(kind, size) or (kind == GOAWAY and size < 8):
        raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "a frame of another size than its type has")


def _unpadded(payload: bytes) -> bytes:
    if not payload or payload[0] >= len(payload):
        raise Http2Error(ErrorCode.PROTOCOL_ERROR, "more padding than the frame has")
    return payload[1 : len(payload) - payload[0]]


def _check_head(headers: Headers) -> int:
    """Return the length that a request's headers say its body has, or -1. (Sections 8.2, 8.3)"""
    count = next((at for at, (name, _) in enumerate(headers) if name[:1] != b":"), len(headers))
    pseudo = dict(headers[:count])
    if len(pseudo) != count or not _REQUIRED <= pseudo.keys() <= _PSEUDO or not pseudo[b":path"]:
        raise StreamError(ErrorCode.PROTOCOL_ERROR, "pseudo-headers that no request has")
    return _check_fields(headers[count:])


def _check_fields(headers: Headers) -> int:
    length = -1
    for name, value in headers:
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise StreamError(ErrorCode.PROTOCOL_ERROR, "a header with a character that it cannot have")
        if name in _HOP_BY_HOP or (name == b"te" and value.lower() != b"trailers"):
            raise StreamError(ErrorCode.PROTOCOL_ERROR, "a header of HTTP/1's connections")
        if name == b"content-length":
            if length >= 0 or not value.isdigit() or len(value) > 10:
                raise StreamError(ErrorCode.PROTOCOL_ERROR, "a content-length that is none")
            length = int(value)
    return length
