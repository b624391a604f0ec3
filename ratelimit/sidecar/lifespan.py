"""`Lifespan`: begins and ends an app as a server does, whenever that is wanted."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Scope

from ratelimit.errors import StoreMisconfigured


class Lifespan:
    """Of one app, once."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._outbox: asyncio.Queue[Message] = asyncio.Queue()
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises `StoreMisconfigured` with what the app says is wrong, and what the app raises."""
        scope: Scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
        self._running = asyncio.create_task(self._run(scope))
        answer = await self._ask("lifespan.startup")
        if answer["type"] != "lifespan.startup.complete":
            raise StoreMisconfigured(answer.get("message", "the app did not start"))

    async def end(self) -> None:
        """Returns when the app has ended. Raises what it raises; harmless where it did not start."""
        if self._running is not None:
            await self._ask("lifespan.shutdown")
            await self._running

    async def _run(self, scope: Scope) -> None:
        try:
            await self._app(scope, self._inbox.get, self._outbox.put)
        finally:
            # Whoever waits for an answer that will not come is not left waiting.
            self._outbox.put_nowait({"type": "ended"})

    async def _ask(self, kind: str) -> Message:
        self._inbox.put_nowait({"type": kind})
        answer = await self._outbox.get()
        if answer["type"] == "ended" and self._running is not None:
            await self._running
        return answer
