"""`Request`: the head of a request as a connection has read and judged it."""

from __future__ import annotations

import re
from functools import lru_cache
from random import getrandbits
from typing import Final, TypeAlias
from urllib.parse import unquote

from starlette.types import Scope

from ratelimit.http.routing import ambiguity
from ratelimit.server.problems import (
    FRAGMENT,
    NO_END,
    NO_HOST,
    NO_TARGET,
    NO_TUNNEL,
    NOT_CODED,
    OLD_CODED,
    TOO_LONG,
    TOO_OLD,
    RequestRefused,
)

RawHeader: TypeAlias = "tuple[bytes, bytes]"

REQUEST_ID: Final = b"x-request-id"

MAX_LENGTH_DIGITS: Final = 18
"""Of a length: whoever counts in signed integers counts so far."""

_MAX_KNOWN_TARGET: Final = 256
_KNOWN_TARGETS: Final = 1024
_ABSOLUTE: Final = re.compile(rb"https?://([^/?]+)(/[^?]*)?(\?.*)?", re.IGNORECASE)
# A name, an address or an IPv6 address in brackets, and a port (RFC 3986, 3.2.2).
_HOST: Final = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")
_ID: Final = re.compile(rb"[\x21-\x7e]{1,128}")
_TELLING: Final = frozenset({
    b"host", b"transfer-encoding", b"content-length", b"expect", b"connection", b"upgrade", b"te", REQUEST_ID,
})  # fmt: skip
_ASGI: Final = {"version": "3.0", "spec_version": "2.4"}


class Request:
    """A head that has one meaning. Names of fields are in lower case.

    The target is in origin-form (RFC 9112, 3.2), whatever form it was written in, byte by byte; or `*`.
    """

    method: bytes = b""
    version: str = "1.1"
    scope: Scope
    """What an ASGI app would be shown."""
    ambiguity: str | None = None
    """Why nobody can tell what its path asks for."""
    host: bytes = b""
    id: bytes | None = None
    """The one that came with it, if it is usable."""
    has_body: bool = False
    """Whether it is framed as one with a body (RFC 9112, 6)."""
    is_chunked: bool = False
    expects_continue: bool = False
    trailers_asked: bool = False
    keep_alive: bool = True
    connection_options: frozenset[bytes] = frozenset()
    offers: bytes = b""
    """The protocol to which the client would upgrade."""
    _ids: tuple[bytes, ...] = ()
    _codings: tuple[bytes, ...] = ()

    def __init__(self, since: float) -> None:
        self.since = since
        """When its first byte came, on the loop's clock."""
        self.target = b""
        self.headers: list[RawHeader] = []

    def judge(self, method: bytes, version: str, *, keep_alive: bool) -> None:
        """Read the fields that say how the message is framed and who is asked. Raises `RequestRefused`."""
        self.method = method
        if version == "1.1":
            self.keep_alive = keep_alive
        else:
            self.version = version
            self.keep_alive = False
        if not self.target.startswith(b"/") or b"#" in self.target:
            self._take_origin_form()
        host: bytes | None = None
        for name, value in self.headers:
            if name in _TELLING:
                if host is None and name == b"host":
                    host = value.strip()
                else:
                    self._note(name, value)
        self._check_host(version, host)
        if self._codings:
            self._check_codings(version)
        if self.expects_continue:
            # One of HTTP/1.0 does not know it.
            self.expects_continue = self.has_body and version == "1.1"
        if self._ids and len(self._ids) == 1 and _ID.fullmatch(self._ids[0]):
            self.id = self._ids[0]

    def _check_host(self, version: str, host: bytes | None) -> None:
        # RFC 9112, 3.2.
        if version not in ("1.1", "1.0"):
            raise RequestRefused(TOO_OLD)
        if host is not None:
            if not _HOST.fullmatch(host):
                raise RequestRefused(NO_HOST)
            self.host = host
        elif version == "1.1":
            raise RequestRefused(NO_HOST)

    def _check_codings(self, version: str) -> None:
        # RFC 9112, 6.1. Lengths, chunks and syntax have been the parser's to judge.
        if version == "1.0":
            raise RequestRefused(OLD_CODED)
        applied = [coding.strip().lower() for coding in b",".join(self._codings).split(b",")]
        if applied[-1] != b"chunked":
            raise RequestRefused(NO_END)
        if len(applied) > 1:
            raise RequestRefused(NOT_CODED)
        self.has_body = self.is_chunked = True

    def _note(self, name: bytes, value: bytes) -> None:
        if name == b"content-length":
            length = value.strip().lstrip(b"0")
            self.has_body = bool(length)
            if len(length) > MAX_LENGTH_DIGITS:
                raise RequestRefused(TOO_LONG)
        elif name == b"host":
            raise RequestRefused(NO_HOST)
        elif name == b"transfer-encoding":
            self._codings += (value,)
        elif name == REQUEST_ID:
            self._ids += (value,)
        elif name == b"connection":
            self.connection_options |= frozenset([token.strip().lower() for token in value.split(b",")])
        elif name == b"expect":
            self.expects_continue = value.lower() == b"100-continue"
        elif name == b"te":
            self.trailers_asked = b"trailers" in value.lower()
        else:
            self.offers = value.strip().lower()

    def _take_origin_form(self) -> None:
        """Take path and query of a URL; its authority goes over the `Host` field (RFC 9112, 3.2)."""
        if self.target == b"*" and self.method == b"OPTIONS":
            return
        if b"#" in self.target:
            raise RequestRefused(FRAGMENT)
        if self.method == b"CONNECT":
            raise RequestRefused(NO_TUNNEL)
        absolute = _ABSOLUTE.fullmatch(self.target)
        if absolute is None:
            raise RequestRefused(NO_TARGET)
        host, path, query = absolute.groups(default=b"")
        self.target = (path or b"/") + query
        places = [place for place, (name, _) in enumerate(self.headers) if name == b"host"]
        if len(places) == 1:
            self.headers[places[0]] = b"host", host
        elif not places and self.version == "1.0":
            self.headers.append((b"host", host))

    def show(self, client: tuple[str, int] | None, server: tuple[str, int | None] | None) -> None:
        path, raw_path, query, self.ambiguity = read_target(self.target)
        self.scope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": self.version,
            "server": server,
            "client": client,
            "scheme": "http",
            "method": self.method.decode(),
            "root_path": "",
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": self.headers,
        }

    @property
    def opens_websocket(self) -> bool:
        """Return whether it is a handshake (RFC 6455, 4.1)."""
        return (
            self.offers == b"websocket"
            and b"upgrade" in self.connection_options
            and self.method == b"GET"
            and self.version == "1.1"
            and not self.has_body
        )

    def identify(self) -> bytes:
        """Return its id, which from here on its fields say once."""
        if self.id is None:
            self.id = b"%032x" % getrandbits(128)
            if self._ids:
                # In place: the scope has the same list.
                self.headers[:] = [field for field in self.headers if field[0] != REQUEST_ID]
            self.headers.append((REQUEST_ID, self.id))
        return self.id

    def without_upgrade(self) -> bytes:
        """Write the head as if no upgrade had been offered (RFC 9110, 7.8)."""
        lines = [b"%b %b HTTP/%b" % (self.method, self.target, self.version.encode())]
        for name, value in self.headers:
            if name == b"connection":
                options = [option.strip() for option in value.split(b",")]
                lines.append(b"connection: " + b", ".join([each for each in options if each.lower() != b"upgrade"]))
            elif name != b"upgrade":
                lines.append(b"%b: %b" % (name, value))
        return b"\r\n".join([*lines, b"", b""])


def read_target(target: bytes) -> tuple[str, bytes, bytes, str | None]:
    """Return the path, decoded and as written, the query, and why nobody can tell what the path asks for, if so."""
    return _read_target_again(target) if len(target) <= _MAX_KNOWN_TARGET else _read_target(target)


def _read_target(target: bytes) -> tuple[str, bytes, bytes, str | None]:
    if target == b"*":
        # Asked of the whole server, it counts as its root.
        return "/", b"/", b"", None
    raw_path, _, query = target.partition(b"?")
    path = raw_path.decode("latin-1")
    if "%" in path:
        path = unquote(path)
    return path, raw_path, query, ambiguity(path)


_read_target_again = lru_cache(_KNOWN_TARGETS)(_read_target)
