"""`Generation`: one configuration at work, from its start to the end of the last request that it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeAlias

from starlette.types import ASGIApp, Receive, Scope, Send

from ratelimit.sidecar.base import Base
from ratelimit.sidecar.lifespan import Lifespan

MakeApp: TypeAlias = Callable[[Base], ASGIApp]
"""Raises `ConfigError`."""


class Generation:
    """An ASGI app for requests. Requests under way when the next generation takes over are finished by this one."""

    def __init__(self, base: Base, app: ASGIApp) -> None:
        self.base = base
        self.requests = 0
        """Under way; websockets are among them."""
        self._app = app
        self._lifespan = Lifespan(app)
        self._idle = asyncio.Event()
        self._is_cut_off = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        self.requests += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self.requests -= 1
            if not self.requests:
                self._idle.set()

    async def start(self) -> None:
        """Raises `StoreMisconfigured` where waiting for the store would not help."""
        await self._lifespan.start()

    async def idle(self) -> None:
        """Returns when nothing is under way, or was cut off. It must not get new requests by then."""
        while self.requests and not self._is_cut_off:
            self._idle.clear()
            await self._idle.wait()

    def cut_off(self) -> None:
        """Nobody waits any longer for what is under way."""
        self._is_cut_off = True
        self._idle.set()

    async def end(self) -> None:
        """Refunds arrive, what was taken ahead goes back, connections to the upstream close; `base` stays."""
        await self._lifespan.end()
