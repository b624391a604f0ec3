"""`Upload`: the request's body on its way, chunk by chunk, no faster than the upstream takes it."""

from __future__ import annotations

import asyncio
from typing import Any, Final, Self

import aiohttp
from starlette.types import Receive, Scope

from ratelimit.proxy.patience import Patience

# An upstream that knows `Expect` says so by then; one that does not is waiting for the body.
_CONTINUE_S: Final = 1.0

LOST: Final = "ratelimit.lost"
"""In a scope: a future that is done when the connection is lost, for whoever must not `receive` to find out."""


class Upload:
    """What aiohttp iterates over, once: as soon as some of it was asked for it repeats nothing."""

    __slots__ = ("_more", "_patience", "_receive", "finished")

    def __init__(self, receive: Receive, patience: Patience) -> None:
        self._receive = receive
        self._patience = patience
        self._more = True
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """The server has seen to it that there is no more than the fields say. Raises `ConnectionResetError`."""
        while self._more:
            self._patience.wait_for("client")
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._patience.wait_for("gone")
                raise ConnectionResetError("the client has left before its request was complete")
            self._more = message.get("more_body", False)
            if body := message.get("body", b""):
                self._patience.wait_for("upstream")
                return bytes(body)
        self._patience.wait_for("first byte")
        if not self.finished.done():
            self.finished.set_result(None)
        raise StopAsyncIteration


class PatientRequest(aiohttp.ClientRequest):
    """Does not wait for ever for the `100 Continue` of a server that sends none (RFC 9110, 10.1.1)."""

    def update_expect_continue(self, expect: bool = False) -> None:
        """As ever, and the body goes out after a second at the latest."""
        super().update_expect_continue(expect)
        waiting: asyncio.Future[Any] | None = self._continue
        if waiting is not None:
            self.loop.call_later(_CONTINUE_S, _go_on, waiting)


def _go_on(waiting: asyncio.Future[Any]) -> None:
    if not waiting.done():
        waiting.set_result(True)


def has_body(scope: Scope) -> bool:
    """Whether the request is framed as one with a body (RFC 9112, 6)."""
    for name, value in scope["headers"]:
        if name == b"transfer-encoding" or (name == b"content-length" and value.strip() != b"0"):
            return True
    return False


def expects_continue(scope: Scope) -> bool:
    """Whether the client waits for a `100 Continue` before it sends the body. One of HTTP/1.0 does not know it."""
    return scope["http_version"] != "1.0" and any(
        name == b"expect" and value.lower() == b"100-continue" for name, value in scope["headers"]
    )
