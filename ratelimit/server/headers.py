"""Which headers pass the proxy, and how: RFC 9110, 7.6.1 (hop by hop) and 7.6.3 (`Via`), RFC 7239 (`Forwarded`)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, TypeAlias

from multidict import CIMultiDict
from starlette.types import Scope

from ratelimit.http.addresses import Addresses, TrustedProxies
from ratelimit.http.identity import named_by_connection, text
from ratelimit.http.request_handler import RateLimitState
from ratelimit.server.upstream import ProxySettings, Upstream

RawHeader: TypeAlias = "tuple[bytes, bytes]"

VIA: Final = "ratelimit"
COST: Final = b"x-ratelimit-cost"
REQUEST_ID: Final = b"x-request-id"
HOP_BY_HOP: Final = frozenset({
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te",
    b"trailer", b"transfer-encoding", b"upgrade",
})  # fmt: skip
HANDSHAKE: Final = frozenset({
    b"sec-websocket-key", b"sec-websocket-version", b"sec-websocket-extensions", b"sec-websocket-protocol",
    b"sec-websocket-accept",
})  # fmt: skip
KEPT: Final = frozenset({b"content-length", b"host", REQUEST_ID})
"""Also where `Connection` names them: what frames the message, and what both sides' logs know it by."""
CLAIMS: Final = frozenset({
    b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-port", b"x-forwarded-prefix",
    b"x-forwarded-proto", b"x-forwarded-server", b"x-forwarded-ssl", b"x-real-ip", b"true-client-ip",
    b"x-client-ip", b"x-cluster-client-ip",
})  # fmt: skip

_SECURE: Final = {"ws": "http", "wss": "https"}
_NOT_ANSWERED: Final = HOP_BY_HOP | HANDSHAKE | {COST}
# A server may not write these into an answer; it would be our error then, and is the upstream's.
_UNWRITABLE: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_BODILESS: Final = frozenset({204, 304})


class InvalidResponse(ValueError):
    """An answer that is no valid HTTP, or none that may be passed on. It quotes nothing that may be a secret."""


class RequestHeaders:
    """Turn a request's headers into those that the upstream gets.

    What a peer claims about the way a request came is kept, and added to, only where that peer is one of the trusted
    proxies; from anyone else it is replaced by what was seen here.
    """

    __slots__ = ("_disguised", "_gone", "_settings", "_trusts", "_upstream")

    def __init__(self, settings: ProxySettings, upstream: Upstream, trusted_proxies: TrustedProxies) -> None:
        self._settings = settings
        self._upstream = upstream
        self._trusts = Addresses(trusted_proxies).trusts_peer
        ours = [*settings.strip, settings.identify_as]
        stripped = frozenset(name.lower().encode() for name in ours if name)
        self._disguised = stripped | HOP_BY_HOP | {b"content-length", b"host"}
        self._gone = stripped | HOP_BY_HOP | HANDSHAKE | {b"expect"}

    def of(self, scope: Scope, user: str | None) -> CIMultiDict[str]:
        """Keep duplicates in order. `Expect` is left out: it is part of how a body is sent, not of the message."""
        raw: list[RawHeader] = scope["headers"]
        trusted = self._trusts(scope)
        headers: CIMultiDict[str] = CIMultiDict()
        claims: dict[bytes, str] = {}
        host = ""
        for name, value in raw:
            if b"_" in name and self._is_disguised(name, scope):
                continue
            if name in CLAIMS:
                if trusted:
                    claims[name] = f"{claims[name]}, {text(value)}" if name in claims else text(value)
            elif name == b"host":
                host = text(value)
            elif name not in self._gone:
                headers.add(name.decode("latin-1"), text(value))
        headers["host"] = host if host and self._settings.host == "client" else self._upstream.authority
        headers.extend(_forwarded(scope, claims, host))
        headers.add("via", f"{scope.get('http_version', '1.1')} {VIA}")
        if user is not None and self._settings.identify_as:
            headers[self._settings.identify_as] = user
        return headers

    def _is_disguised(self, name: bytes, scope: Scope) -> bool:
        """CGI and WSGI make no difference between X-A_B and X-A-B, so whoever strips one strips both, and whoever knows
        users by one lets nobody say the other."""
        plain = name.replace(b"_", b"-")
        state = RateLimitState.of(scope)
        identifying = frozenset() if state is None else state.options.identifying
        return plain in CLAIMS or plain in self._disguised or plain in identifying


def response_headers(raw: Iterable[RawHeader], status: int, version: str = "1.1") -> list[RawHeader]:
    """Return those of an answer that its client gets. Raises `InvalidResponse` for one that cannot be written."""
    lowered = [(name.lower(), value) for name, value in raw]
    gone = _NOT_ANSWERED
    if named := named_by_connection(lowered):
        gone |= named - KEPT
    if status in _BODILESS:
        # A server would wait for that many bytes, and there are none.
        gone |= {b"content-length"}
    found = []
    for name, value in lowered:
        if _UNWRITABLE.search(value):
            raise InvalidResponse(f"the field {name.decode('latin-1')!r} holds control characters")
        if name not in gone:
            found.append((name, value))
        elif name == b"transfer-encoding" and value.strip().lower() != b"chunked":
            raise InvalidResponse("its transfer coding is not understood")
    found.append((b"via", f"{version} {VIA}".encode()))
    return found


def _forwarded(scope: Scope, claims: dict[bytes, str], host: str) -> list[tuple[str, str]]:
    """Return what to tell of the way that the request came. `claims` are those of a trusted peer."""
    peer = (scope.get("client") or ("unknown",))[0] or "unknown"
    proto = _SECURE.get(scope["scheme"], scope["scheme"])
    node = f'"[{peer}]"' if ":" in peer else peer
    found: list[tuple[str, str]] = [
        ("x-forwarded-for", _joined(claims.get(b"x-forwarded-for"), peer)),
        ("x-forwarded-proto", str(claims.get(b"x-forwarded-proto", proto))),
        ("forwarded", _joined(claims.get(b"forwarded"), f"for={node};host={_quoted(host)};proto={proto}")),
    ]
    if host or b"x-forwarded-host" in claims:
        found.append(("x-forwarded-host", claims.get(b"x-forwarded-host", host)))
    told = {"x-forwarded-for", "x-forwarded-proto", "forwarded", "x-forwarded-host"}
    return found + [(name.decode(), value) for name, value in claims.items() if name.decode() not in told]


def _joined(earlier: str | None, now: str) -> str:
    return f"{earlier}, {now}" if earlier else now


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def has_body(scope: Scope) -> bool:
    """Return whether the request is framed as one with a body (RFC 9112, 6)."""
    for name, value in scope["headers"]:
        if name == b"transfer-encoding" or (name == b"content-length" and value.strip() != b"0"):
            return True
    return False


def expects_continue(scope: Scope) -> bool:
    """Return whether the client waits for a `100 Continue` to send the body. One of HTTP/1.0 does not know it."""
    return scope["http_version"] != "1.0" and any(
        name == b"expect" and value.lower() == b"100-continue" for name, value in scope["headers"]
    )
