"""The blocking limiter, asked as the asynchronous one is: by a thread that has no event loop."""

from __future__ import annotations

import asyncio
from typing import Any

from ratelimit import sync
from ratelimit.decision import Decision


class InThreads:
    """Each question is put by another thread than the test's."""

    def __init__(self, limiter: sync.Limiter) -> None:
        self.limiter = limiter

    async def check(self, user: str, action: str, **options: Any) -> Decision:
        return await asyncio.to_thread(self.limiter.check, user, action, **options)

    async def peek(self, user: str, action: str, **options: Any) -> Decision:
        return await asyncio.to_thread(self.limiter.peek, user, action, **options)
