"""Which headers pass the proxy, and how: RFC 9110, 7.6.1 (hop by hop), 7.6.3 (`Via`) and 6.5 (trailers), RFC 7239
(`Forwarded`)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from ratelimit.http.addresses import Addresses, TrustedProxies
from ratelimit.http.headers import LIMIT_FIELDS
from ratelimit.server.request import MAX_LENGTH_DIGITS, REQUEST_ID, RawHeader, Request
from ratelimit.server.upstream import ProxySettings, Upstream

COST: Final = b"x-ratelimit-cost"
HOP_BY_HOP: Final = frozenset({
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te",
    b"transfer-encoding", b"upgrade",
})  # fmt: skip
KEPT: Final = frozenset({b"content-length", b"host", REQUEST_ID})
"""Also where `Connection` names them: what frames the message, and what both sides' logs know it by."""
CLAIMS: Final = frozenset({
    b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-port", b"x-forwarded-prefix",
    b"x-forwarded-proto", b"x-forwarded-server", b"x-forwarded-ssl", b"x-real-ip", b"true-client-ip",
    b"x-client-ip", b"x-cluster-client-ip",
    # By which IIS, and who has learned of it (Symfony, Zend), route instead of by the path.
    b"x-original-url", b"x-rewrite-url",
})  # fmt: skip
HANDSHAKE: Final = frozenset({
    b"sec-websocket-key", b"sec-websocket-version", b"sec-websocket-extensions", b"sec-websocket-protocol",
    b"sec-websocket-accept",
})  # fmt: skip
_READ_HERE: Final = KEPT | HOP_BY_HOP | HANDSHAKE | CLAIMS | {b"expect", b"trailer"}
# What a trailer must not say (RFC 9110, 6.5.1): how the message is framed, routed or read, and who has sent it.
_NO_TRAILERS: Final = _READ_HERE | {
    b"authorization", b"cache-control", b"content-encoding", b"content-range", b"content-type", b"cookie", b"range",
    b"set-cookie", COST,
}  # fmt: skip
_MAX_KNOWN_HOST: Final = 256

_OF_INTEREST: Final = HOP_BY_HOP | LIMIT_FIELDS | {COST, REQUEST_ID, b"content-length", b"date"}
# What an upstream's `Connection` says most often, which drops nothing.
_UNNAMED: Final = KEPT | {b"keep-alive", b"close"}
_BODILESS: Final = frozenset({204, 304})
_VIA: Final = {version: b"via: %b ratelimit\r\n" % version.encode() for version in ("1.0", "1.1")}


class InvalidResponse(ValueError):
    """An answer that is no valid HTTP, or none that may be passed on. It quotes nothing that may be a secret."""


class RequestHeaders:
    """Write the head that the upstream gets, from the one that came.

    What a peer claims about the way a request came is kept, and added to, only where that peer is one of the trusted
    proxies; from anyone else it is replaced by what was seen here. `identifying`: the fields that users are known by.
    """

    __slots__ = ("_authority", "_disguised", "_identify_as", "_keeps_host", "_special", "_stripped",
                 "_trusts", "_upstream")  # fmt: skip

    def __init__(
        self,
        settings: ProxySettings,
        upstream: Upstream,
        trusted_proxies: TrustedProxies = 0,
        identifying: frozenset[bytes] = frozenset(),
    ) -> None:
        self._upstream = upstream
        self._authority = upstream.authority.encode()
        self._keeps_host = settings.host == "client"
        self._identify_as = settings.identify_as.encode()
        self._trusts = Addresses(trusted_proxies).trusts_peer
        ours = [*settings.strip, settings.identify_as]
        self._stripped = frozenset(name.lower().encode() for name in ours if name)
        self._disguised = self._stripped | HOP_BY_HOP | {b"content-length", b"host"} | CLAIMS | identifying
        self._special = self._stripped | HOP_BY_HOP | CLAIMS | HANDSHAKE | {b"expect", b"host"}

    def clean(self, request: Request) -> None:
        """Drop what is for this hop only, before anybody is identified by it: the upstream will not see it either."""
        named = request.connection_options - _READ_HERE
        if named:
            request.headers[:] = [field for field in request.headers if field[0] not in named]

    def write(self, request: Request, user: str) -> list[bytes]:
        """Return the pieces. `user`: whom the upstream is told of, if anybody. `Expect` is among them only while the
        client waits."""
        special = self._special
        host = request.host if self._keeps_host and request.host else self._authority
        lines = [request.method, b" ", self._upstream.target(request.target), b" HTTP/1.1\r\nhost: ", host, b"\r\n"]
        claims: dict[bytes, bytes] = {}
        for name, value in request.headers:
            if name in special:
                if name in CLAIMS:
                    claims[name] = claims[name] + b", " + value if name in claims else value
                elif name in HANDSHAKE and request.scope["type"] == "websocket":
                    lines += (name, b": ", value, b"\r\n")
            elif b"_" not in name or not self._is_disguised(name):
                lines += (name, b": ", value, b"\r\n")
        lines.append(self._way(request, claims))
        if user:
            # Names hold no control characters (`check_user`).
            lines += (self._identify_as, b": ", user.encode(), b"\r\n")
        lines.append(_VIA[request.version])
        lines.append(_framing(request))
        return lines

    def trailers(self, trailers: list[RawHeader]) -> list[RawHeader]:
        """Return those that pass: none that would say what only a header section may."""
        return [
            (name, value)
            for name, value in trailers
            if name not in _NO_TRAILERS and name not in self._disguised and not self._is_disguised(name)
        ]

    def _is_disguised(self, name: bytes) -> bool:
        """CGI and WSGI make no difference between X-A_B and X-A-B, so whoever strips one strips both, and whoever knows
        users by one lets nobody say the other."""
        return b"_" in name and name.replace(b"_", b"-") in self._disguised

    def _way(self, request: Request, claims: dict[bytes, bytes]) -> bytes:
        """Return what to tell of the way that the request came."""
        client: tuple[str, int] | None = request.scope["client"]
        peer = (client[0] if client else "") or "unknown"
        if not claims or not self._trusts(request.scope):
            told = _told_again if len(request.host) <= _MAX_KNOWN_HOST else _told
            return told(peer, request.host)
        seen = dict(_seen(peer, request.host))
        for name in (b"x-forwarded-for", b"forwarded"):
            if name in claims:
                claims[name] += b", " + seen[name]
        if b"forwarded" not in claims:
            # It would begin with the peer, and who believes it before the others would take that for the client.
            del seen[b"forwarded"]
        return _lines({**seen, **claims}.items())


def _framing(request: Request) -> bytes:
    """Return the fields for the next hop alone, and the end of the head."""
    if request.scope["type"] == "websocket":
        return b"connection: upgrade\r\nupgrade: websocket\r\n\r\n"
    if not (request.is_chunked or request.expects_continue or request.trailers_asked):
        return b"\r\n"
    told = b"transfer-encoding: chunked\r\n" if request.is_chunked else b""
    if request.expects_continue:
        told += b"expect: 100-continue\r\n"
    if request.trailers_asked:
        told += b"connection: te\r\nte: trailers\r\n"
    return told + b"\r\n"


class AnswerHead:
    """An answer's status and fields: what they say of its framing, and those that its client gets.

    Raises `InvalidResponse` for one that cannot be passed on. Control characters in values are for the parser to find.
    """

    has_length: bool = False
    has_date: bool = False
    has_id: bool = False
    is_coded: bool = False
    is_empty: bool = True
    """Whether the length that is told is 0, or none is."""
    cost: bytes | None = None
    """What it says that the request has cost."""
    limits: tuple[RawHeader, ...] = ()
    """What it says of limits by itself."""
    _named: frozenset[bytes] = frozenset()

    def __init__(self, status: int, reason: bytes, raw: list[RawHeader], version: str) -> None:
        self.status = status
        self.reason = reason
        self.raw = raw
        """The fields as they came."""
        self.lines: list[bytes] = []
        """Those that pass, in pieces as they are written."""
        lines = self.lines
        for name, value in raw:
            if name not in _OF_INTEREST or self._note(name, value):
                lines += (name, b": ", value, b"\r\n")
        if self._named:
            self._drop(self._named)
        lines.append(_VIA.get(version) or b"via: %b ratelimit\r\n" % version.encode())

    def _drop(self, named: frozenset[bytes]) -> None:
        """Leave out what its `Connection` names."""
        kept = [place for place in range(0, len(self.lines), 4) if self.lines[place] not in named]
        self.lines[:] = [piece for place in kept for piece in self.lines[place : place + 4]]
        self.has_date = b"date" in self.lines[::4]
        self.limits = tuple([field for field in self.limits if field[0] not in named])

    def _note(self, name: bytes, value: bytes) -> bool:
        """Take note of a field. Return whether it passes."""
        if name == b"content-length":
            return self._note_length(value)
        if name == b"date":
            self.has_date = True
            return True
        if name == b"connection":
            if value not in _UNNAMED:
                self._named |= frozenset([token.strip().lower() for token in value.split(b",")]) - _UNNAMED
            return False
        if name == REQUEST_ID:
            self.has_id = True
            return True
        if name in LIMIT_FIELDS:
            self.limits += ((name, value),)
            return True
        if name == COST:
            self.cost = value
        elif name == b"transfer-encoding":
            self.is_coded, self.is_empty = True, False
            if value.strip().lower() != b"chunked":
                raise InvalidResponse("its transfer coding is not understood")
        return False

    def _note_length(self, value: bytes) -> bool:
        self.has_length = True
        length = value.strip().lstrip(b"0")
        self.is_empty = not length
        if len(length) > MAX_LENGTH_DIGITS:
            raise InvalidResponse("its length is a number that nobody can count to")
        # A client would wait for that many bytes, and there are none.
        return self.status not in _BODILESS


def response_trailers(trailers: list[RawHeader]) -> list[RawHeader]:
    """Return those that pass on to the client."""
    return [field for field in trailers if field[0] not in _NO_TRAILERS]


def _seen(peer: str, host: bytes) -> list[RawHeader]:
    node = (f'"[{peer}]"' if ":" in peer else peer).encode()
    quoted = host.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    seen = [
        (b"x-forwarded-for", peer.encode()),
        (b"x-forwarded-proto", b"http"),
        (b"forwarded", b'for=%b;host="%b";proto=http' % (node, quoted)),
    ]
    return [*seen, (b"x-forwarded-host", host)] if host else seen


def _lines(fields: Iterable[RawHeader]) -> bytes:
    return b"".join([b"%b: %b\r\n" % field for field in fields])


def _told(peer: str, host: bytes) -> bytes:
    return _lines(_seen(peer, host))


_told_again: Final = lru_cache(1024)(_told)
