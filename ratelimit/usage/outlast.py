"""`Outlast`: for work that takes minutes, patience with a store that is away for some seconds."""

from __future__ import annotations

import asyncio
import random as _random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from ratelimit.errors import StoreMisconfigured, StoreUnavailable
from ratelimit.usage.writer import Random, Sleep

T = TypeVar("T")

_ATTEMPTS: Final = 10
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 5.0


class Outlast:
    """Tries again what may happen twice, 10 times at most, with full jitter: that outlasts some 10 seconds."""

    def __init__(
        self, *, attempts: int = _ATTEMPTS, sleep: Sleep = asyncio.sleep, random: Random = _random.random
    ) -> None:
        self._attempts = attempts
        self._sleep = sleep
        self._random = random

    async def run(self, call: Callable[[], Awaitable[T]]) -> T:
        """The result of `call`. Raises the last `StoreUnavailable`; `StoreMisconfigured` at once."""
        for attempt in range(1, self._attempts):
            try:
                return await call()
            except StoreMisconfigured:
                raise
            except StoreUnavailable:
                await self.pause(attempt)
        return await call()

    async def pause(self, attempt: int) -> None:
        """Before the next one."""
        await self._sleep(self._random() * min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0**attempt))
