"""The `limits` library as a contender (`pip install limits`), in the peers' own virtual environment."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from limits import RateLimitItem, parse_many
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter

from loadtest.bench.worker import Contender

_USERS = 256


@asynccontextmanager
async def in_memory(quotas: str, stats: bool = False) -> AsyncIterator[Contender]:
    """Fixed windows in this process; with `stats`, also asking for what a header shows (our decisions carry it)."""
    yield _contender(FixedWindowRateLimiter(MemoryStorage()), parse_many(quotas), stats=stats)


@asynccontextmanager
async def on_redis(url: str, quotas: str, client: Any, stats: bool = False) -> AsyncIterator[Contender]:
    """Fixed windows in Redis, by the client library of this name; its pool as large as it takes."""
    storage: Any = RedisStorage(f"async+{url}", implementation=client)
    yield _contender(FixedWindowRateLimiter(storage), parse_many(quotas), stats=stats)


def _contender(limiter: FixedWindowRateLimiter, items: list[RateLimitItem], *, stats: bool) -> Contender:
    users = itertools.cycle([f"user-{number}" for number in range(_USERS)])

    async def call() -> None:
        user = next(users)
        for item in items:
            if not await limiter.hit(item, user, "hint"):
                raise AssertionError(item)
            if stats:
                await limiter.get_window_stats(item, user, "hint")

    return Contender(call)
