"""`Request`: the head of a request as a connection has read and judged it."""

from __future__ import annotations

import re
from collections.abc import Sequence
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

    __slots__ = (
        "ambiguity", "connection_options", "expects_continue", "has_body", "headers", "host", "id", "is_chunked",
        "keep_alive", "method", "offers", "scope", "since", "target", "trailers_asked", "version",
    )  # fmt: skip

    def __init__(self, since: float) -> None:
        self.since = since
        """When its first byte came, on the loop's clock."""
        self.method = b""
        self.target = b""
        self.version = "1.1"
        self.headers: list[RawHeader] = []
        self.scope: Scope = {}
        """What an ASGI app would be shown."""
        self.ambiguity: str | None = None
        """Why nobody can tell what its path asks for."""
        self.host = b""
        self.id: bytes | None = None
        """The one that came with it, if it is usable."""
        self.has_body = self.is_chunked = False
        """Whether it is framed as one with a body (RFC 9112, 6)."""
        self.expects_continue = self.trailers_asked = False
        self.keep_alive = True
        self.connection_options: frozenset[bytes] = frozenset()
        self.offers = b""
        """The protocol to which the client would upgrade."""

    def judge(self, method: bytes, version: str, *, keep_alive: bool) -> None:
        """Read the fields that say how the message is framed and who is asked. Raises `RequestRefused`."""
        self.method, self.version = method, version
        self.keep_alive = keep_alive and version == "1.1"
        if not self.target.startswith(b"/") or b"#" in self.target:
            self._take_origin_form()
        hosts: list[bytes] = []
        codings: list[bytes] = []
        ids: list[bytes] = []
        for name, value in self.headers:
            if name not in _TELLING:
                continue
            if name == b"host":
                hosts.append(value)
            elif name == b"transfer-encoding":
                codings.append(value)
            elif name == REQUEST_ID:
                ids.append(value)
            else:
                self._note(name, value)
        _check_framing(version, hosts, codings)
        self.host = hosts[0].strip() if hosts else b""
        self.is_chunked = bool(codings)
        self.has_body = self.has_body or self.is_chunked
        # One of HTTP/1.0 does not know it.
        self.expects_continue = self.expects_continue and self.has_body and version == "1.1"
        if len(ids) == 1 and _ID.fullmatch(ids[0]):
            self.id = ids[0]

    def _note(self, name: bytes, value: bytes) -> None:
        if name == b"content-length":
            length = value.strip().lstrip(b"0")
            self.has_body = bool(length)
            if len(length) > MAX_LENGTH_DIGITS:
                raise RequestRefused(TOO_LONG)
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
        """Make the scope."""
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


def _check_framing(version: str, hosts: Sequence[bytes], codings: Sequence[bytes]) -> None:
    # RFC 9112: 3.2 for the host, 6.1 for the codings. Lengths, chunks and syntax have been the parser's to judge.
    if version not in ("1.1", "1.0"):
        raise RequestRefused(TOO_OLD)
    if len(hosts) != 1 and (hosts or version == "1.1"):
        raise RequestRefused(NO_HOST)
    if hosts and not _HOST.fullmatch(hosts[0].strip()):
        raise RequestRefused(NO_HOST)
    if codings:
        if version == "1.0":
            raise RequestRefused(OLD_CODED)
        applied = [coding.strip().lower() for coding in b",".join(codings).split(b",")]
        if applied[-1] != b"chunked":
            raise RequestRefused(NO_END)
        if len(applied) > 1:
            raise RequestRefused(NOT_CODED)
