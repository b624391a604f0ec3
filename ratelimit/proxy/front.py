"""`Front`: what is settled before anything is checked: the path is plain, the request has an id, the answer a date."""

from __future__ import annotations

import re
import time
from email.utils import formatdate
from functools import lru_cache
from typing import Final
from uuid import uuid4

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ratelimit.proxy.failures import AMBIGUOUS

REQUEST_ID: Final = b"x-request-id"

_ID = re.compile(rb"[\x21-\x7e]{1,128}")
# What an upstream may resolve must not get past a pattern that was matched before it did.
_DOTS = re.compile(r"(?:^|[/\\])\.{1,2}(?:[/\\;]|$)")
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
        number = _identified(scope)

        async def pass_on(message: Message) -> None:
            await send(_complete(message, number) if message["type"] in _STARTS else message)

        if _DOTS.search(scope["path"]):
            await AMBIGUOUS.send(scope, pass_on)
        else:
            await self.app(scope, receive, pass_on)


def _identified(scope: Scope) -> bytes:
    """The request's id, which from here on its fields say once."""
    given = [value for name, value in scope["headers"] if name == REQUEST_ID]
    if len(given) == 1 and _ID.fullmatch(given[0]):
        return bytes(given[0])
    number = uuid4().hex.encode()
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
