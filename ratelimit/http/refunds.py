"""`Refunds`: units on their way back to the store, behind the response and never in its way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from ratelimit.errors import StoreUnavailable
from ratelimit.http.gate import Receipt

MOST_AT_ONCE: Final = 1000
_DRAIN_S: Final = 5.0

logger = logging.getLogger("ratelimit")


class Refunds:
    """Background tasks, at most `most` at once; what is beyond that, or fails, stays spent: usage reads too high, never
    too low. `lost` counts those units' receipts."""

    __slots__ = ("_most", "_tasks", "lost")

    def __init__(self, *, most: int = MOST_AT_ONCE) -> None:
        self.lost = 0
        self._most = most
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, receipts: Sequence[Receipt]) -> None:
        """Give these back, soon. Returns at once."""
        if not receipts:
            return
        if len(self._tasks) >= self._most:
            self._lose(receipts, f"{self._most} refunds are under way already")
            return
        task = asyncio.get_running_loop().create_task(self._give_back(receipts))
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    async def drain(self) -> None:
        """Wait for those under way, at most 5 s."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=_DRAIN_S)

    def __len__(self) -> int:
        return len(self._tasks)

    async def _give_back(self, receipts: Sequence[Receipt]) -> None:
        for receipt in receipts:
            try:
                await receipt.give_back()
            except StoreUnavailable as error:
                self._lose([receipt], str(error))

    def _lose(self, receipts: Sequence[Receipt], why: str) -> None:
        self.lost += len(receipts)
        for receipt in receipts:
            logger.warning("%d units of %r were not given back: %s", receipt.decision.cost, receipt.policy.name, why)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a refund failed", exc_info=error)
