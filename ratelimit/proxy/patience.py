"""`Patience`: one timer for a whole exchange, which knows whom it is waiting for at the moment."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Literal, Self, TypeAlias

from ratelimit.proxy.settings import ProxySettings

Whom: TypeAlias = Literal["connection", "first byte", "upstream", "client", "gone"]


class Patience:
    """`async with Patience(settings) as patience:` raises `TimeoutError`; `patience.whom` says who was too slow."""

    __slots__ = ("_loop", "_spans", "_timer", "whom")

    def __init__(self, settings: ProxySettings) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer = asyncio.timeout(None)
        self._spans: dict[Whom, float] = {
            "connection": settings.connect + settings.first_byte,
            "first byte": settings.first_byte,
            "upstream": settings.idle,
            "client": settings.idle,
            "gone": 0.0,
        }
        self.whom: Whom = "connection"

    def wait_for(self, whom: Whom) -> None:
        """From now on, afresh. After `gone` nothing else is waited for."""
        if self.whom != "gone" and not self._timer.expired():
            self.whom = whom
            self._timer.reschedule(self._loop.time() + self._spans[whom])

    async def __aenter__(self) -> Self:
        await self._timer.__aenter__()
        self.wait_for("connection")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._timer.__aexit__(kind, error, trace)
