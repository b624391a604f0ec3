"""`scope_of`: a WSGI environment as the scope that an ASGI server would have made of the same request."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from starlette.types import Scope

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
