"""`Forwarding`: what the upstream is told about the way a request came (RFC 7239, and the older `X-Forwarded-*`).

What a peer claims is kept, and added to, only where that peer is one of the trusted proxies; from anyone else it is
replaced by what was seen here.
"""

from __future__ import annotations

from typing import Final

from starlette.types import Scope

from ratelimit.http.addresses import Addresses, TrustedProxies

CLAIMS: Final = frozenset({
    b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-port", b"x-forwarded-prefix",
    b"x-forwarded-proto", b"x-forwarded-server", b"x-forwarded-ssl", b"x-real-ip", b"true-client-ip",
    b"x-client-ip", b"x-cluster-client-ip",
})  # fmt: skip
_SECURE: Final = {"ws": "http", "wss": "https"}


class Forwarding:
    """`trusted_proxies` as in the middleware."""

    __slots__ = ("trusts",)

    def __init__(self, trusted_proxies: TrustedProxies) -> None:
        self.trusts = Addresses(trusted_proxies).trusts_peer

    def fields(self, scope: Scope, claims: dict[bytes, str], host: str) -> list[tuple[str, str]]:
        """The fields to send. `claims` are those of a trusted peer; `host` is the `Host` that the client asked for."""
        peer, proto = _peer(scope) or "unknown", _SECURE.get(scope["scheme"], scope["scheme"])
        found: list[tuple[str, str]] = [
            ("x-forwarded-for", _joined(claims.get(b"x-forwarded-for"), peer)),
            ("x-forwarded-proto", str(claims.get(b"x-forwarded-proto", proto))),
            ("forwarded", _joined(claims.get(b"forwarded"), f"for={_node(peer)};host={_quoted(host)};proto={proto}")),
        ]
        if host or b"x-forwarded-host" in claims:
            found.append(("x-forwarded-host", claims.get(b"x-forwarded-host", host)))
        kept = {"x-forwarded-for", "x-forwarded-proto", "forwarded", "x-forwarded-host"}
        return found + [(name.decode(), value) for name, value in claims.items() if name.decode() not in kept]


def _peer(scope: Scope) -> str:
    client = scope.get("client")
    return client[0] if client else ""


def _joined(earlier: str | None, now: str) -> str:
    return f"{earlier}, {now}" if earlier else now


def _node(peer: str) -> str:
    return f'"[{peer}]"' if ":" in peer else peer


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
