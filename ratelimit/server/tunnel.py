"""`WebSocketTunnel`: a websocket from its handshake on. Bytes pass both ways as they are, extensions and all; frames
are only counted through, so that whoever stays behind is told when the other side is gone (RFC 6455)."""

from __future__ import annotations

import asyncio
import socket
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha1
from typing import Final

from ratelimit.server.connection import NEVER, ClientConnection
from ratelimit.server.pool import UpstreamConnection
from ratelimit.server.request import RawHeader
from ratelimit.server.upstream import ProxySettings

GOING_AWAY: Final = 1001
PROTOCOL_ERROR: Final = 1002
TOO_LARGE: Final = 1009
LOST: Final = 1011
"""For the client: the upstream is gone without a word; try elsewhere, or later."""
SERVICE_RESTART: Final = 1012

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
LEAVE_S: float = 5.0
"""Seconds in which a side that was told to close may answer."""
_CLOSE_FRAME: Final = 8
_OPCODES: Final = frozenset({0, 1, 2, 8, 9, 10})
# A peer that is gone without a word is found out by TCP: seconds of silence, between two questions, questions.
_KEEP_ALIVE: Final = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))


def accepts(asked: list[RawHeader], answered: list[RawHeader]) -> bool:
    """Return whether a 101 answers the key of this handshake (RFC 6455, 4.2.2)."""
    keys = [value for name, value in asked if name == b"sec-websocket-key"]
    accepted = [value for name, value in answered if name == b"sec-websocket-accept"]
    return len(keys) == 1 and accepted == [b64encode(sha1(keys[0] + _GUID, usedforsecurity=False).digest())]


class Violation(Exception):
    """A side breaks the protocol. `code`: what it is told."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Frames:
    """Counts the frames of one direction through. Raises `Violation`."""

    __slots__ = ("_head", "_is_masked", "_left", "_max_message", "_size", "is_closed")

    def __init__(self, max_message: int, *, is_masked: bool) -> None:
        self._max_message = max_message
        self._is_masked = is_masked
        self._head = b""
        self._left = 0
        """Bytes of the present frame that are still to come."""
        self._size = 0
        """Bytes of the present message by now, as they are on the way."""
        self.is_closed = False
        """Whether a close frame has come: there are no more after it."""

    @property
    def is_between(self) -> bool:
        """Return whether a frame may begin here."""
        return not self._left and not self._head

    def feed(self, data: bytes) -> None:
        place, end = 0, len(data)
        while place < end:
            if self._left:
                step = min(self._left, end - place)
                self._left -= step
                place += step
            else:
                place = self._read_head(data, place)

    def _read_head(self, data: bytes, place: int) -> int:
        """Return where its payload begins, or the end where there is only a part of it."""
        before = len(self._head)
        head = self._head + data[place : place + 14 - before]
        if len(head) < 2:
            self._head = head
            return len(data)
        opcode, length = head[0] & 15, head[1] & 127
        if bool(head[1] & 128) is not self._is_masked or opcode not in _OPCODES:
            raise Violation(PROTOCOL_ERROR)
        extended = {126: 2, 127: 8}.get(length, 0)
        size = 2 + extended + (4 if self._is_masked else 0)
        if len(head) < size:
            self._head = head
            return len(data)
        if extended:
            length = int.from_bytes(head[2 : 2 + extended], "big")
        self._head = b""
        self._left = length
        self._note(opcode, length, is_last=bool(head[0] & 128))
        return place + size - before

    def _note(self, opcode: int, length: int, *, is_last: bool) -> None:
        if opcode >= _CLOSE_FRAME:
            self.is_closed = self.is_closed or opcode == _CLOSE_FRAME
            return
        self._size += length
        if self._size > self._max_message:
            raise Violation(TOO_LARGE)
        if is_last:
            self._size = 0


class WebSocketTunnel:
    """`over` is called when both sides are gone."""

    def __init__(
        self, client: ClientConnection, upstream: UpstreamConnection, settings: ProxySettings, over: Callable[[], None]
    ) -> None:
        self._client = client
        self._upstream = upstream
        self._idle_s = settings.idle
        self._over = over
        self._from_client = Frames(settings.max_message, is_masked=True)
        self._from_upstream = Frames(settings.max_message, is_masked=False)
        self._is_leaving = False
        """Whether both were told to close by us: nothing of what they say passes any more."""

    def begin(self, early: bytes) -> None:
        """Take over both connections. `early`: what the upstream has sent behind its answer."""
        client, upstream = self._client, self._upstream
        client.flush()
        client.exchange, client.tunnel = None, self
        upstream.asking, upstream.tunnel = None, self
        client.due = NEVER
        _keep_alive(client.transport)
        _keep_alive(upstream.transport)
        if early:
            self.from_upstream(early)
        if sent := client.take_stash():
            self.from_client(sent)
        client.listen()
        upstream.resume_reading()

    def from_client(self, data: bytes) -> None:
        self._pass(data, self._from_client, self._upstream.transport)

    def from_upstream(self, data: bytes) -> None:
        self._pass(data, self._from_upstream, self._client.transport)

    def client_lost(self) -> None:
        self._lose(self._from_client, self._upstream.transport, GOING_AWAY, is_masked=True)

    def upstream_lost(self) -> None:
        self._lose(self._from_upstream, self._client.transport, LOST, is_masked=False)

    def client_full(self) -> None:
        """Wait for a client that takes nothing, but not for ever."""
        self._upstream.pause_reading()
        self._client.due = self._client.loop.time() + self._idle_s

    def client_drained(self) -> None:
        self._client.due = NEVER
        self._upstream.resume_reading()

    def upstream_full(self) -> None:
        self._client.transport.pause_reading()
        self._client.due = self._client.loop.time() + self._idle_s

    def upstream_drained(self) -> None:
        self._client.due = NEVER
        self._client.transport.resume_reading()

    def expire(self) -> None:
        """End it: a side reads nothing, or does not leave."""
        self._client.abort()
        self._upstream.transport.abort()

    def restart(self) -> None:
        """Tell both to close with 1012: clients know how to come back."""
        if not self._is_leaving and not self._from_client.is_closed and not self._from_upstream.is_closed:
            self._leave(SERVICE_RESTART, SERVICE_RESTART)

    def _pass(self, data: bytes, frames: Frames, to: asyncio.Transport) -> None:
        if self._is_leaving:
            self._see_off(data, frames)
            return
        try:
            frames.feed(data)
        except Violation as error:
            told = (error.code, GOING_AWAY) if frames is self._from_client else (LOST, error.code)
            self._leave(*told)
            return
        to.write(data)

    def _leave(self, client_code: int, upstream_code: int) -> None:
        """Tell both sides, as far as a frame may begin there; nothing passes any more."""
        self._is_leaving = True
        if self._from_upstream.is_between:
            self._client.transport.write(_close_frame(client_code, is_masked=False))
        if self._from_client.is_between:
            self._upstream.transport.write(_close_frame(upstream_code, is_masked=True))
        self._client.due = self._client.loop.time() + LEAVE_S
        self._client.transport.resume_reading()
        self._upstream.resume_reading()

    def _see_off(self, data: bytes, frames: Frames) -> None:
        """Wait for the close frames that answer ours."""
        try:
            frames.feed(data)
        except Violation:
            frames.is_closed = True
        if frames.is_closed:
            (self._client if frames is self._from_client else self._upstream).transport.close()

    def _lose(self, gone: Frames, other: asyncio.Transport, code: int, *, is_masked: bool) -> None:
        """Tell the one that stays, unless the one that went has said it."""
        if not other.is_closing():
            if not self._is_leaving and not gone.is_closed and gone.is_between:
                other.write(_close_frame(code, is_masked=is_masked))
            other.close()
        if self._client.transport.is_closing() and self._upstream.transport.is_closing():
            over, self._over = self._over, _nothing
            over()


def _nothing() -> None:
    """Be over already."""


def _close_frame(code: int, *, is_masked: bool) -> bytes:
    payload = code.to_bytes(2, "big")
    # A mask of zeros is one (5.3 asks for a random one against scripts that choose the payload; this one is ours).
    return b"\x88\x82\0\0\0\0" + payload if is_masked else b"\x88\x02" + payload


def _keep_alive(transport: asyncio.Transport) -> None:
    place = transport.get_extra_info("socket")
    if place is None or place.family not in (socket.AF_INET, socket.AF_INET6):
        return
    place.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE:
        if hasattr(socket, name):
            place.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
