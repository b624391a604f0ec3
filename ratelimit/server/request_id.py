"""What is settled before anything is checked: the request can be served, it has an id, and its answer a date."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from email.utils import formatdate
from functools import lru_cache
from random import getrandbits
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ratelimit.http.identity import named_by_connection
from ratelimit.http.routing import ambiguity
from ratelimit.server.headers import CLAIMS, HANDSHAKE, HOP_BY_HOP, KEPT, REQUEST_ID
from ratelimit.server.problems import (
    NO_HOST,
    NO_TARGET,
    NO_TUNNEL,
    NOT_CODED,
    OLD_CODED,
    TOO_OLD,
    ServerProblem,
    problem,
)

# A name, an address or an IPv6 address in brackets, and a port (RFC 3986, 3.2.2).
_HOST: Final = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")


def reject_ambiguous(scope: Scope) -> ServerProblem | None:
    """Return what to say of a request that two readers may take for different ones; None where it is clear.

    Lengths, chunks and the syntax of headers are the server's to judge.
    """
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


def _framed(version: str, hosts: Sequence[bytes], codings: Sequence[bytes]) -> ServerProblem | None:
    # RFC 9112: 3.2 for the host, 6.1 for the codings.
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


_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_READ_HERE: Final = KEPT | HOP_BY_HOP | HANDSHAKE | CLAIMS | {b"expect"}
_STARTS: Final = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})


class RequestIdMiddleware:
    """Stand outside of `RateLimitMiddleware`. Pass on the id that comes with a request, if it is plain text of at most
    128 characters; otherwise make one."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        if named := named_by_connection(scope["headers"]) - _READ_HERE:
            # Gone before anybody is identified by it: the upstream will not see it either.
            scope["headers"] = [field for field in scope["headers"] if field[0] not in named]
        number = _identified(scope)

        async def pass_on(message: Message) -> None:
            await send(_complete(message, number) if message["type"] in _STARTS else message)

        if (problem_ := reject_ambiguous(scope)) is None:
            await self.app(scope, receive, pass_on)
        else:
            await problem_.send(scope, receive, pass_on)


def request_id(scope: Scope) -> bytes | None:
    """Return the one that came with the request, if it is usable."""
    given = [value for name, value in scope["headers"] if name == REQUEST_ID]
    return bytes(given[0]) if len(given) == 1 and _ID.fullmatch(given[0]) else None


def _identified(scope: Scope) -> bytes:
    """Return the request's id, which from here on its headers say once."""
    if (given := request_id(scope)) is not None:
        return given
    number = b"%032x" % getrandbits(128)
    scope["headers"] = [field for field in scope["headers"] if field[0] != REQUEST_ID] + [(REQUEST_ID, number)]
    return number


def _complete(message: Message, number: bytes) -> Message:
    """Add the id, and a date where the upstream gave none (RFC 9110, 6.6.1)."""
    headers = list(message.get("headers") or ())
    names = {name for name, _ in headers}
    if REQUEST_ID not in names:
        headers.append((REQUEST_ID, number))
    if b"date" not in names:
        headers.append((b"date", _date(int(time.time()))))
    return {**message, "headers": headers}


@lru_cache(maxsize=2)
def _date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()
