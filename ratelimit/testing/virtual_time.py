"""Virtual time: an event loop that never waits, and whose clock jumps to whatever happens next."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from ratelimit.clock import SECOND

T = TypeVar("T")

# A Monday at noon: no window of an hour or more ends in a simulation of less than an hour.
START: Final = round(datetime(2026, 1, 5, 12, tzinfo=UTC).timestamp()) * SECOND


class VirtualLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop on a clock that starts at 0 seconds and only moves when there is nothing left to do.

    Timers due at the same moment run in the order in which they were set, so a seeded run is the same every time.
    """

    def __init__(self) -> None:
        self._virtual = 0.0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._virtual

    def jump(self, seconds: float) -> None:
        """Turn the clock on."""
        self._virtual += seconds


class VirtualClock:
    """The wall clock of every simulated process: they all agree, and it is that of the loop."""

    __slots__ = ("_loop",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def now(self) -> int:
        """Microseconds since the epoch."""
        return START + round(self._loop.time() * SECOND)


class _Jumping(selectors.SelectSelector):
    """Where the loop would sleep until its next timer, the clock is turned there instead."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("nothing is left that could ever happen: a task waits for what nobody will do")
        if timeout > 0:
            self._loop.jump(timeout)
        return []


def run(main: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`, on virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
