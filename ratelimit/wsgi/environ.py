"""`scope_of`: a WSGI environment as the scope that an ASGI server would have made of the same request."""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from starlette.types import Message, Scope

ENVIRON_KEY: Final = "ratelimit"
"""Where the middleware leaves its `AppRequest`."""

_UNPREFIXED: Final = ("CONTENT_TYPE", "CONTENT_LENGTH")


def scope_of(environ: Mapping[str, Any]) -> Scope:
    """Return the request's scope (PEP 3333 → ASGI's HTTP connection scope).

    `user` is the server's `REMOTE_USER`, which no client can set. A field that came twice the server has made one of,
    so that nobody behind it can tell either.
    """
    root = _text(environ.get("SCRIPT_NAME", ""))
    scope: Scope = {
        "type": "http",
        "http_version": str(environ.get("SERVER_PROTOCOL", "HTTP/1.1")).partition("/")[2],
        "scheme": environ.get("wsgi.url_scheme", "http"),
        "method": environ["REQUEST_METHOD"],
        "root_path": root,
        "path": root + _text(environ.get("PATH_INFO", "")),
        "query_string": environ.get("QUERY_STRING", "").encode("latin-1"),
        "headers": _headers(environ),
        "client": _client(environ),
        "server": (environ.get("SERVER_NAME", ""), int(environ.get("SERVER_PORT") or 0)),
        "wsgi.environ": environ,
    }
    if (target := environ.get("RAW_URI") or environ.get("REQUEST_URI")) is not None:
        scope["raw_path"] = target.partition("?")[0].encode("latin-1", "replace")
    if user := environ.get("REMOTE_USER"):
        scope["user"] = user
    return scope


def _text(value: str) -> str:
    """Return the text that a server has decoded as Latin-1, byte for byte, as ASGI's decode it."""
    return value.encode("latin-1", "replace").decode("utf-8", "replace")


def _headers(environ: Mapping[str, Any]) -> list[tuple[bytes, bytes]]:
    found = [
        (field, value.encode("latin-1", "replace"))
        for name, value in environ.items()
        if name.startswith("HTTP_") and (field := _field(name[5:]))
    ]
    found += [(_field(name), environ[name].encode("latin-1", "replace")) for name in _UNPREFIXED if environ.get(name)]
    return found


@lru_cache(maxsize=256)
def _field(name: str) -> bytes:
    return name.replace("_", "-").lower().encode("latin-1", "replace")


def _client(environ: Mapping[str, Any]) -> tuple[str, int] | None:
    """Return the peer's address; None behind a unix socket."""
    address = environ.get("REMOTE_ADDR")
    port = str(environ.get("REMOTE_PORT") or "")
    return (address, int(port) if port.isdecimal() else 0) if address else None


# The body of a WSGI request, for functions that ask for it before the app does, which then reads the same.

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
