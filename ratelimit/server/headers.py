"""Which fields pass the proxy, and how: RFC 9110, 7.6.1 (hop by hop) and 7.6.3 (`Via`)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, TypeAlias

from multidict import CIMultiDict
from starlette.types import Scope

from ratelimit.http.identity import named_by_connection, text
from ratelimit.http.request_handler import RateLimitState
from ratelimit.server.failures import Unreadable
from ratelimit.server.forwarded import CLAIMS, Forwarding
from ratelimit.server.request_id import HANDSHAKE, HOP_BY_HOP, KEPT
from ratelimit.server.upstream import ProxySettings, Upstream

RawHeader: TypeAlias = "tuple[bytes, bytes]"

VIA: Final = "ratelimit"
COST: Final = b"x-ratelimit-cost"

_NOT_ANSWERED: Final = HOP_BY_HOP | HANDSHAKE | {COST}
# A server may not write these into an answer; it would be our error then, and is the upstream's.
_UNWRITABLE: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_BODILESS: Final = frozenset({204, 304})


class RequestFields:
    """Turns a request's fields into those that the upstream gets."""

    __slots__ = ("_disguised", "_forwarding", "_gone", "_settings", "_upstream")

    def __init__(self, settings: ProxySettings, upstream: Upstream, forwarding: Forwarding) -> None:
        self._settings = settings
        self._upstream = upstream
        self._forwarding = forwarding
        ours = [*settings.strip, settings.identify_as]
        stripped = frozenset(name.lower().encode() for name in ours if name)
        self._disguised = stripped | HOP_BY_HOP | {b"content-length", b"host"}
        self._gone = stripped | HOP_BY_HOP | HANDSHAKE | {b"expect"}

    def of(self, scope: Scope, user: str | None) -> CIMultiDict[str]:
        """Duplicates are kept in order. `Expect` is left out: it is part of how a body is sent, not of the message."""
        raw: list[RawHeader] = scope["headers"]
        trusted = self._forwarding.trusts(scope)
        fields: CIMultiDict[str] = CIMultiDict()
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
                fields.add(name.decode("latin-1"), text(value))
        fields["host"] = host if host and self._settings.host == "client" else self._upstream.authority
        fields.extend(self._forwarding.fields(scope, claims, host))
        fields.add("via", f"{scope.get('http_version', '1.1')} {VIA}")
        if user is not None and self._settings.identify_as:
            fields[self._settings.identify_as] = user
        return fields

    def _is_disguised(self, name: bytes, scope: Scope) -> bool:
        """CGI and WSGI make no difference between X-A_B and X-A-B, so whoever strips one strips both, and whoever knows
        users by one lets nobody say the other."""
        plain = name.replace(b"_", b"-")
        state = RateLimitState.of(scope)
        identifying = frozenset() if state is None else state.surface.identifying
        return plain in CLAIMS or plain in self._disguised or plain in identifying


def response_fields(raw: Iterable[RawHeader], status: int, version: str = "1.1") -> list[RawHeader]:
    """The fields of an answer that its client gets. Raises `Unreadable` for one that cannot be written."""
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
            raise Unreadable(f"the field {name.decode('latin-1')!r} holds control characters")
        if name not in gone:
            found.append((name, value))
        elif name == b"transfer-encoding" and value.strip().lower() != b"chunked":
            raise Unreadable("its transfer coding is not understood")
    found.append((b"via", f"{version} {VIA}".encode()))
    return found
