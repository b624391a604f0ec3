"""Requests that are refused whatever the upstream is, since two readers may take them for different ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from starlette.types import Scope

from ratelimit.http.target import ambiguity
from ratelimit.proxy.failures import (
    NO_HOST,
    NO_TARGET,
    NO_TUNNEL,
    NOT_CODED,
    OLD_CODED,
    TOO_OLD,
    Failure,
    problem,
)

# A name, an address or an IPv6 address in brackets, and a port (RFC 3986, 3.2.2).
_HOST: Final = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")


def unservable(scope: Scope) -> Failure | None:
    """Why not; None where all is well. Lengths, chunks and the syntax of fields are the server's to judge."""
    if scope.get("method") == "CONNECT":
        return NO_TUNNEL
    if not scope["raw_path"].startswith(b"/"):
        return NO_TARGET
    if (reason := ambiguity(scope["path"])) is not None:
        return problem(400, "Bad Request", f"The path {reason}.")
    hosts, codings = [], []
    for name, value in scope["headers"]:
        if name == b"host":
            hosts.append(value)
        elif name == b"transfer-encoding":
            codings.append(value)
    return _framed(scope["http_version"], hosts, codings)


def _framed(version: str, hosts: Sequence[bytes], codings: Sequence[bytes]) -> Failure | None:
    """RFC 9112: 3.2 for the host, 6.1 for the codings."""
    if version not in ("1.1", "1.0"):
        return TOO_OLD
    if len(hosts) != 1 and (hosts or version == "1.1"):
        return NO_HOST
    if hosts and not _HOST.fullmatch(hosts[0].strip()):
        return NO_HOST
    if not codings:
        return None
    if version == "1.0":
        return OLD_CODED
    return NOT_CODED if [coding.strip().lower() for coding in codings] != [b"chunked"] else None
