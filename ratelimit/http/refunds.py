"""`Refunds`: units on their way back to the store. The answer waits for them: whoever has it may ask again at once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from ratelimit.errors import StoreUnavailable
from ratelimit.http.gate import Receipt

_DRAIN_S: Final = 5.0

logger = logging.getLogger("ratelimit")


class Refunds:
    """What cannot be given back within the limiter's deadline stays spent, usage reads too high, never too low; and is
    counted with the limiter's `background.lost`."""

    __slots__ = ("_tasks",)

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    async def give_back(self, receipts: Sequence[Receipt]) -> None:
        """Returns when all of them are back, or lost. It goes on where the one who waits is cancelled."""
        loop = asyncio.get_running_loop()
        tasks = {loop.create_task(give_back(receipt, receipt.spent)) for receipt in receipts}
        for task in tasks:
            self._tasks.add(task)
            task.add_done_callback(self._finished)
        await asyncio.wait(tasks)

    async def drain(self) -> None:
        """Wait for those under way, at most 5 s."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=_DRAIN_S)

    def __len__(self) -> int:
        return len(self._tasks)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a refund failed", exc_info=error)


async def give_back(receipt: Receipt, units: int) -> None:
    """Give so many units of it back, if the store will have them."""
    try:
        await receipt.give_back(units)
    except StoreUnavailable as error:
        name = receipt.policy.name
        receipt.limiter.background.lost["unreturned"] += units
        logger.warning("%d units of %r were not given back: %s", units, name, error)
