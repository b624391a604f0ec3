"""Another try, where it cannot count twice: bounded, after a pause that is random from zero up (full jitter).

The shape is the AWS Architecture Blog's "Exponential Backoff And Jitter".
"""

from __future__ import annotations

import asyncio
import random as _random
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias, TypeVar

from ratelimit.dynamodb.errors import AnswerLost, StoreUnreachable
from ratelimit.dynamodb.stats import Stats
from ratelimit.errors import StoreThrottled, StoreUnavailable

T = TypeVar("T")
Sleep: TypeAlias = Callable[[float], Awaitable[object]]
Random: TypeAlias = Callable[[], float]

_BASE: Final = 0.02
_LONGEST: Final = 0.2

NOT_EXECUTED: Final = (StoreThrottled, StoreUnreachable)
"""Nothing was written: safe to send again, whatever it was."""
HARMLESS: Final = (*NOT_EXECUTED, AnswerLost)
"""For reads, and for whatever else may happen twice."""


class Retries:
    """Tries a call up to `attempts` times in all."""

    __slots__ = ("_attempts", "_random", "_sleep", "_stats")

    def __init__(
        self, attempts: int, stats: Stats, *, sleep: Sleep = asyncio.sleep, random: Random = _random.random
    ) -> None:
        self._attempts = attempts
        self._stats = stats
        self._sleep = sleep
        self._random = random

    async def run(
        self,
        operation: str,
        call: Callable[[], Awaitable[T]],
        *,
        on: tuple[type[StoreUnavailable], ...] = NOT_EXECUTED,
        attempts: int | None = None,
    ) -> T:
        """The result of `call`, sent again after an error of the kinds `on`. Raises the last one."""
        self._stats.count_call(operation)
        try:
            return await call()
        except StoreUnavailable as error:
            failed = error
        return await self.after(failed, operation, call, on=on, attempts=attempts)

    async def after(
        self,
        error: StoreUnavailable,
        operation: str,
        call: Callable[[], Awaitable[T]],
        *,
        on: tuple[type[StoreUnavailable], ...] = NOT_EXECUTED,
        attempts: int | None = None,
    ) -> T:
        """As `run`, where the first attempt has been made and ended with this error."""
        most = attempts or self._attempts
        for attempt in range(1, most + 1):
            if isinstance(error, StoreThrottled):
                self._stats.throttles += 1
            if attempt == most or not isinstance(error, on):
                break
            self._stats.retries += 1
            await self._sleep(self._random() * min(_LONGEST, _BASE * 2**attempt))
            self._stats.count_call(operation)
            try:
                return await call()
            except StoreUnavailable as again:
                error = again
        raise error
