"""Writes that no answer waits for: counting where there is no limit, returning what was taken ahead."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable
from typing import Final, Literal, TypeAlias

from ratelimit.errors import StoreUnavailable

MAX_TASKS: Final = 10_000

Loss: TypeAlias = Literal["uncounted", "unreturned"]

logger = logging.getLogger("ratelimit")


class Background:
    """Writes under way, at most `MAX_TASKS`. Each is bounded by the circuit's deadline."""

    def __init__(self) -> None:
        self.lost: Counter[Loss] = Counter()
        """Units that the store did not take: `uncounted` are missing from the totals of users without a limit,
        `unreturned` were taken ahead, or for an answer that does not count, and stay spent."""
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def is_full(self) -> bool:
        """Whether the next write should rather be waited for."""
        return len(self._tasks) >= MAX_TASKS

    def start(self, write: Awaitable[object], *, units: int, or_else: Loss) -> None:
        """See it through, whoever asked for it having gone on."""
        task = asyncio.create_task(self.see_through(write, units, or_else))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self) -> None:
        """Returns when all that was started by now has ended, whatever is started meanwhile."""
        self.forget(asyncio.get_running_loop())
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    def forget(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Forget what was under way in other loops: it does not end any more."""
        self._tasks.difference_update([task for task in self._tasks if task.get_loop() is not loop])

    async def see_through(self, write: Awaitable[object], units: int, or_else: Loss) -> None:
        """See it through, waiting for it."""
        try:
            await write
        except StoreUnavailable as error:
            if not self.lost[or_else]:
                logger.warning("units are %s: %s", or_else, error)
            self.lost[or_else] += units
