"""`Front`: what is settled before anything is checked: the request can be served, it has an id, the answer a date."""

from __future__ import annotations

import re
import time
from email.utils import formatdate
from functools import lru_cache
from random import getrandbits
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ratelimit.http.identity import named_by_connection
from ratelimit.proxy.forwarded import CLAIMS
from ratelimit.proxy.unservable import unservable

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

_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_READ_HERE: Final = KEPT | HOP_BY_HOP | HANDSHAKE | CLAIMS | {b"expect"}
_STARTS: Final = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})


class Front:
    """Stands outside of `RateLimitMiddleware`. A request id that comes with the request is passed on, if it is plain
    text of at most 128 characters; otherwise there is a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, or the lifespan."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        if named := named_by_connection(scope["headers"]) - _READ_HERE:
            # Gone before anybody is identified by it: the upstream will not see it either.
            scope["headers"] = [field for field in scope["headers"] if field[0] not in named]
        number = _identified(scope)

        async def pass_on(message: Message) -> None:
            await send(_complete(message, number) if message["type"] in _STARTS else message)

        if (failure := unservable(scope)) is None:
            await self.app(scope, receive, pass_on)
        else:
            await failure.send(scope, pass_on)


def request_id(scope: Scope) -> bytes | None:
    """The one that came with the request, if it is usable."""
    given = [value for name, value in scope["headers"] if name == REQUEST_ID]
    return bytes(given[0]) if len(given) == 1 and _ID.fullmatch(given[0]) else None


def _identified(scope: Scope) -> bytes:
    """The request's id, which from here on its fields say once."""
    if (given := request_id(scope)) is not None:
        return given
    number = b"%032x" % getrandbits(128)
    scope["headers"] = [field for field in scope["headers"] if field[0] != REQUEST_ID] + [(REQUEST_ID, number)]
    return number


def _complete(message: Message, number: bytes) -> Message:
    """With the id, and with a date where the upstream gave none (RFC 9110, 6.6.1)."""
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
