"""`Forwarding`: what the upstream is told about the way a request came (RFC 7239, and the older `X-Forwarded-*`).

What a peer claims is kept, and added to, only where that peer is one of the trusted proxies; from anyone else it is
replaced by what was seen here.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Final

from starlette.types import Scope

from ratelimit.http.addresses import TrustedProxies

CLAIMS: Final = frozenset({
    b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-port", b"x-forwarded-prefix",
    b"x-forwarded-proto", b"x-forwarded-server", b"x-forwarded-ssl", b"x-real-ip", b"true-client-ip",
    b"x-client-ip", b"x-cluster-client-ip",
})  # fmt: skip
_SECURE: Final = {"ws": "http", "wss": "https"}


class Forwarding:
    """`trusted_proxies` as in the middleware, which has checked it."""

    __slots__ = ("_hops", "_networks")

    def __init__(self, trusted_proxies: TrustedProxies) -> None:
        self._hops = trusted_proxies if isinstance(trusted_proxies, int) else 0
        texts = () if isinstance(trusted_proxies, int) else trusted_proxies
        self._networks = tuple(ip_network(text) for text in ([texts] if isinstance(texts, str) else texts))

    def trusts(self, scope: Scope) -> bool:
        """Whether what the peer says about the way so far is to be believed."""
        if self._hops or not self._networks:
            return self._hops > 0
        peer = _address(_peer(scope))
        return peer is not None and any(peer in network for network in self._networks)

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


@lru_cache(maxsize=4096)
def _address(text: str) -> object:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _joined(earlier: str | None, now: str) -> str:
    return f"{earlier}, {now}" if earlier else now


def _node(peer: str) -> str:
    return f'"[{peer}]"' if ":" in peer else peer


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
