"""What a client is told where the upstream gave no answer: 502 and 504 as problem bodies (RFC 9457)."""

from __future__ import annotations

import re
from typing import Final

import aiohttp
import httptools
import msgspec
from starlette.types import Scope, Send

from ratelimit.server.timeouts import Phase

_CLOSE: Final = (b"connection", b"close")
_encoder = msgspec.json.Encoder()


class Failure(msgspec.Struct, frozen=True):
    """The members of the body, in the order they are written. Says nothing of what stands behind the proxy."""

    type: str
    title: str
    status: int
    detail: str

    async def send(self, scope: Scope, send: Send) -> None:
        """As the answer to a request, or to a handshake that was not accepted."""
        if scope["type"] == "http":
            kind = "http.response"
        elif "websocket.http.response" in (scope.get("extensions") or {}):
            kind = "websocket.http.response"
        else:
            await send({"type": "websocket.close", "code": 1014, "reason": self.title})
            return
        body, headers = self._written()
        if self.status == 408:
            headers.append(_CLOSE)
        await send({"type": f"{kind}.start", "status": self.status, "headers": headers})
        await send({"type": f"{kind}.body", "body": body})

    @property
    def length(self) -> int:
        """Of the body, in bytes."""
        return len(_encoder.encode(self))

    def raw(self) -> bytes:
        """As the last that is written to a connection."""
        body, headers = self._written()
        lines = [b"HTTP/1.1 %d %b" % (self.status, self.title.encode())]
        lines += [b"%b: %b" % field for field in (*headers, _CLOSE)]
        return b"\r\n".join([*lines, b"", body])

    def _written(self) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        body = _encoder.encode(self)
        return body, [(b"content-type", b"application/problem+json"), (b"content-length", b"%d" % len(body))]


def problem(status: int, title: str, detail: str) -> Failure:
    """One without a type of its own."""
    return Failure("about:blank", title, status, detail)


NO_CONNECTION: Final = problem(502, "Bad Gateway", "The service behind this proxy cannot be reached.")
BROKEN: Final = problem(502, "Bad Gateway", "The service behind this proxy closed the connection before it answered.")
UNREADABLE: Final = problem(502, "Bad Gateway", "The service behind this proxy gave an answer that is no valid HTTP.")
NO_WEBSOCKET: Final = problem(502, "Bad Gateway", "The service behind this proxy does not speak WebSocket here.")
LATE: Final = problem(504, "Gateway Timeout", "The service behind this proxy did not answer in time.")
UNREACHED: Final = problem(504, "Gateway Timeout", "No connection to the service behind this proxy in time.")
SLOW: Final = problem(408, "Request Timeout", "The request did not arrive in time.")
NOT_CODED: Final = problem(501, "Not Implemented", "The only transfer coding understood here is chunked.")
NO_TUNNEL: Final = problem(501, "Not Implemented", "CONNECT is not a request that this proxy serves.")
MALFORMED: Final = problem(400, "Bad Request", "This is no valid HTTP/1.1 request")
CUT_SHORT: Final = problem(400, "Bad Request", "The request ended before its body was complete.")
UNENCODED: Final = problem(
    400, "Bad Request", "The request target holds a byte that no URL may hold; percent-encode it (RFC 3986, 2.1)."
)
FRAGMENT: Final = problem(400, "Bad Request", "The request target has a fragment; that is for the client alone.")
UNKNOWN_METHOD: Final = problem(
    501, "Not Implemented", "The method is none that is known here; methods are upper-case."
)
LARGE: Final = problem(431, "Request Header Fields Too Large", "The target and the fields of a request: 64 KB at most.")
NO_HOST: Final = problem(400, "Bad Request", "An HTTP/1.1 request has one Host field, which names a host.")
TOO_OLD: Final = problem(505, "HTTP Version Not Supported", "This proxy speaks HTTP/1.0 and HTTP/1.1.")
OLD_CODED: Final = problem(400, "Bad Request", "A request of HTTP/1.0 has no transfer codings.")
NO_TARGET: Final = problem(400, "Bad Request", "The request target has to be a path, an http URL or, of OPTIONS, *.")


class Refused(Exception):
    """A request that is not read any further, and what its client is told."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.detail)
        self.failure = failure


def of_parser(error: httptools.HttpParserError, *, is_method: bool) -> Failure:
    """What a request is refused with that the parser gave up on; `is_method`: what it reads as one could be one."""
    if isinstance(error.__context__, Refused):
        return error.__context__.failure
    if isinstance(error, httptools.HttpParserInvalidURLError):
        return UNENCODED
    if isinstance(error, httptools.HttpParserInvalidMethodError) and is_method:
        return UNKNOWN_METHOD
    if "HTTP version" in str(error):
        return TOO_OLD
    # The parser's reasons are its own words, and quote nothing.
    return msgspec.structs.replace(MALFORMED, detail=f"{MALFORMED.detail}: {error}.")


def of_error(error: Exception, phase: Phase) -> Failure:
    """What went wrong, while this one was waited for."""
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return UNREACHED
    if isinstance(error, aiohttp.ClientConnectorError):
        return NO_CONNECTION
    if isinstance(error, TimeoutError):
        return _of_timeout(phase)
    if isinstance(error, aiohttp.ClientResponseError | ValueError):
        return UNREADABLE
    return BROKEN


def _of_timeout(phase: Phase) -> Failure:
    if phase == "client":
        return SLOW
    return UNREACHED if phase == "connection" else LATE


class Unreadable(ValueError):
    """An answer that is no valid HTTP, or none that may be passed on. It quotes nothing that may be a secret."""


def said(error: Exception) -> str:
    """For the log: what kind of error it is and where it happened. What aiohttp adds may be the URL with its query, or
    a piece of the answer."""
    name = type(error).__name__
    if isinstance(error, aiohttp.ClientConnectorError | Unreadable):
        return f"{name}: {error}"
    reason = error.strerror if isinstance(error, OSError) else None
    if isinstance(error, aiohttp.ClientResponseError):
        reason = re.split(r"[:'\"(]", error.message, maxsplit=1)[0].strip()
    return f"{name}: {reason}" if reason else name
