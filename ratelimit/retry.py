"""Another attempt at what may happen twice, after a pause that is random from zero up and grows: full jitter.

The shape is the AWS Architecture Blog's "Exponential Backoff And Jitter".
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar

from ratelimit.blocking import sleep
from ratelimit.errors import StoreMisconfigured, StoreUnavailable

T = TypeVar("T")
Errors: TypeAlias = type[Exception] | tuple[type[Exception], ...]

# Doubled so often, any pause is at its most; a float would overflow at 1024.
_MAX_DOUBLINGS: Final = 64


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses before further attempts: any length up to twice `first_s`, then four times, never more than `max_s`."""

    first_s: float
    max_s: float

    def bound_s(self, attempt: int) -> float:
        """Return the longest pause that may follow so many failed attempts, in seconds."""
        return min(self.max_s, self.first_s * 2.0 ** min(attempt, _MAX_DOUBLINGS))

    async def pause(self, attempt: int) -> None:
        """Wait, so many attempts having failed."""
        await sleep(random.random() * self.bound_s(attempt))

    async def retry(self, call: Callable[[], Awaitable[T]], *, attempts: int, on: Errors, but: Errors = ()) -> T:
        """Return what `call` does, tried again after the errors `on`, except for `but`. Raise the last one."""
        for attempt in range(1, attempts):
            try:
                return await call()
            except but:
                raise
            except on:
                await self.pause(attempt)
        return await call()


# Another attempt of work that takes minutes, where the store is away for some seconds.


STORE_ATTEMPTS: Final = 10
"""Which take some 10 seconds."""
STORE_BACKOFF: Final = Backoff(first_s=0.1, max_s=5.0)


async def retry_store(call: Callable[[], Awaitable[T]]) -> T:
    """Return what `call` does, which may happen twice. Raise the last error, `StoreMisconfigured` at once."""
    return await STORE_BACKOFF.retry(call, attempts=STORE_ATTEMPTS, on=StoreUnavailable, but=StoreMisconfigured)
