"""`AsgiService`: an ASGI app behind a listener: the native API, the admin listener."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from starlette.types import ASGIApp, Message

from ratelimit.server.connection import NEVER, ClientConnection
from ratelimit.server.exchange import Exchange
from ratelimit.server.listener import Service
from ratelimit.server.problems import FAULT, PHRASES
from ratelimit.server.request import RawHeader, Request

logger = logging.getLogger("ratelimit.serving")

_MAX_HELD: Final = 64 * 1024
"""Bytes of a body that wait to be received by the app."""


class AsgiService(Service):
    """Serves an app. What begins and ends with it, does so by `behind`, and not by ASGI's lifespan."""

    def __init__(self, app: ASGIApp, behind: Any = None) -> None:
        self.app = app
        self._behind = behind

    async def start(self) -> None:
        if self._behind is not None:
            await self._behind.start()

    async def end(self) -> None:
        if self._behind is not None:
            await self._behind.end()

    def exchange(self, connection: ClientConnection, request: Request) -> Exchange:
        return AsgiExchange(connection, request, self.app)


class AsgiExchange(Exchange):
    """One request to the app. A handshake is an ordinary request to it."""

    def __init__(self, connection: ClientConnection, request: Request, app: ASGIApp) -> None:
        super().__init__(connection, request)
        self._app = app
        self._body: list[bytes] = []
        self._held = 0
        self._head: tuple[int, list[RawHeader]] = 500, []
        self._is_read = False
        """Whether the app knows that there is no more of the body."""
        self._finished = False
        self._changed: asyncio.Future[None] | None = None

    def begin(self) -> None:
        self.request.scope["type"] = "http"
        self.connection.due = NEVER
        self._task = self.connection.loop.create_task(self._run())

    def on_body(self, data: bytes) -> None:
        if not self._finished:
            self._body.append(data)
            self._held += len(data)
            if self._held > _MAX_HELD:
                self.connection.hold(True)
            self._wake()

    def on_complete(self, trailers: list[RawHeader]) -> None:
        self.is_complete = True
        self._wake()

    def on_lost(self) -> None:
        self._is_lost = True
        self._wake()
        if self._task is None:
            self.over()

    def on_drained(self) -> None:
        self._wake()

    async def _run(self) -> None:
        try:
            await self._app(self.request.scope, self._receive, self._send)
        except Exception:
            logger.exception("the app failed with a request")
        finally:
            self._end()

    def _end(self) -> None:
        if not self._finished and not self._is_lost:
            if self.started:
                self.connection.abort()
            else:
                self._finished = True
                self.problem(FAULT)
        self.over()

    async def _receive(self) -> Message:
        if self.request.expects_continue and not self.started and not self._body and not self.is_complete:
            self.request.expects_continue = False
            self.connection.go_on()
        while not (self._is_lost or self._finished or self._body or (self.is_complete and not self._is_read)):
            await self._change()
        if self._is_lost or self._finished:
            return {"type": "http.disconnect"}
        body = b"".join(self._body)
        self._body.clear()
        self._held = 0
        self._is_read = self.is_complete
        self.connection.hold(False)
        return {"type": "http.request", "body": body, "more_body": not self.is_complete}

    async def _send(self, message: Message) -> None:
        if self._is_lost or self._finished:
            return
        if message["type"] == "http.response.start":
            fields = [(name.lower(), value) for name, value in message.get("headers", ())]
            self._head = message["status"], fields
            return
        connection = self.connection
        if not self.started:
            status, fields = self._head
            connection.start(status, PHRASES.get(status, b""), fields)
        connection.send(message.get("body", b""))
        if message.get("more_body", False):
            connection.flush()
            while connection.write_paused and not self._is_lost:
                await self._change()
        else:
            self._finished = True
            self._body.clear()
            connection.finish()

    async def _change(self) -> None:
        if self._changed is None:
            self._changed = self.connection.loop.create_future()
        await self._changed

    def _wake(self) -> None:
        changed, self._changed = self._changed, None
        if changed is not None and not changed.done():
            changed.set_result(None)
