"""`ExchangeTimeout`: one timer for a whole exchange, which knows what it waits for at the moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Final, Literal, Self, TypeAlias

from ratelimit.server.upstream import ProxySettings

Phase: TypeAlias = Literal["connection", "first byte", "upstream", "client", "gone"]
Timeouts: TypeAlias = Mapping[Phase, float]

# A quick answer is through before anybody needs to look whether the client is still there.
_SLOW_S: Final = 0.05


def timeouts(settings: ProxySettings) -> Timeouts:
    """How long each of them is waited for, in seconds."""
    return {
        "connection": settings.connect + settings.first_byte,
        "first byte": settings.first_byte,
        "upstream": settings.idle,
        "client": settings.idle,
        "gone": 0.0,
    }


class ExchangeTimeout:
    """`async with ExchangeTimeout(…) as timeout:` raises `TimeoutError`; `timeout.phase` says who was too slow.

    `on_slow` is called once, if the exchange takes longer than most. To wait for somebody else costs two assignments:
    the timer, when it goes off too soon, is set anew.
    """

    __slots__ = ("_due", "_loop", "_on_slow", "_timeout", "_timeouts", "_timer", "phase")

    def __init__(self, timeouts: Timeouts, on_slow: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout = asyncio.timeout(None)
        self._timer: asyncio.TimerHandle | None = None
        self._on_slow = on_slow
        self._timeouts = timeouts
        self._due = 0.0
        self.phase: Phase = "connection"

    def wait_for(self, phase: Phase) -> None:
        """From now on, afresh. After `gone` nothing else is waited for."""
        if self.phase == "gone":
            return
        self.phase = phase
        self._due = self._loop.time() + self._timeouts[phase]
        timer = self._timer
        if timer is not None and self._due < timer.when():
            timer.cancel()
            self._look()

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        self._timer = self._loop.call_later(_SLOW_S, self._slow)
        self.wait_for("connection")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await self._timeout.__aexit__(kind, error, trace)

    def _slow(self) -> None:
        self._on_slow()
        self._look()

    def _look(self) -> None:
        """Whether it is over, or when to look again."""
        if self._due <= self._loop.time():
            self._timer = None
            self._timeout.reschedule(self._due)
        else:
            self._timer = self._loop.call_at(self._due, self._look)
