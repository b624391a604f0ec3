"""The body of a WSGI request, for functions that ask for it before the app does, which then reads the same."""

from __future__ import annotations

import io
from typing import Any, Final

from starlette.types import Message

_PIECE_BYTES: Final = 65_536


class InputReader:
    """Reads `wsgi.input` as far as the request goes: there a server may wait for ever, or find the next request."""

    def __init__(self, environ: dict[str, Any]) -> None:
        self._input = environ["wsgi.input"]
        length = environ.get("CONTENT_LENGTH") or ""
        self._left: int | None = None if environ.get("wsgi.input_terminated") else 0
        if length.isdecimal():
            self._left = int(length)

    def read(self, most: int) -> bytes:
        """Return up to so many bytes; none at the end."""
        wanted = most if self._left is None else min(most, self._left)
        piece: bytes = self._input.read(wanted) if wanted else b""
        if self._left is not None:
            self._left -= len(piece)
        return piece

    async def receive(self) -> Message:
        """Be ASGI's `receive`, which blocks."""
        piece = self.read(_PIECE_BYTES)
        if not piece and self._left:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": piece, "more_body": bool(piece) and self._left != 0}

    def after(self, read: bytes, *, has_more: bool) -> io.BufferedIOBase:
        """Return the `wsgi.input` of the app: what was read, and the rest."""
        return io.BufferedReader(_Replayed(read, self)) if has_more else io.BytesIO(read)


class _Replayed(io.RawIOBase):
    def __init__(self, read: bytes, rest: InputReader) -> None:
        self._read = io.BytesIO(read)
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._read.read(len(buffer)) or self._rest.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)
