"""Another attempt of work that takes minutes, where the store is away for some seconds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from ratelimit.errors import StoreMisconfigured, StoreUnavailable
from ratelimit.retry import Backoff

T = TypeVar("T")

ATTEMPTS: Final = 10
"""Which take some 10 seconds."""
BACKOFF: Final = Backoff(first_s=0.1, max_s=5.0)


async def retry(call: Callable[[], Awaitable[T]]) -> T:
    """Return what `call` does, which may happen twice. Raise the last error, `StoreMisconfigured` at once."""
    return await BACKOFF.retry(call, attempts=ATTEMPTS, on=StoreUnavailable, but=StoreMisconfigured)
