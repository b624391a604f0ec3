"""Writes that no answer waits for: counting where there is no limit, returning what was taken ahead, cleaning up."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from ratelimit.blocking import Deferred
from ratelimit.errors import StoreUnavailable
from ratelimit.tasks import Tasks

MAX_BACKGROUND_WRITES: Final = 10_000

Loss: TypeAlias = Literal["uncounted", "unreturned"]

logger = logging.getLogger("ratelimit")


@dataclass(slots=True)
class LimiterStats:
    """What a limiter has spared the store since it was made, and what it has lost."""

    denials_cached: int = 0
    """Checks refused by what the store had said a moment before."""
    leased: int = 0
    """Checks granted from units taken ahead."""
    coalesced: int = 0
    """Checks that went out together with others."""
    alerts_dropped: int = 0
    """Alerts not raised because too many others were still being handled."""
    lost: Counter[Loss] = field(default_factory=Counter)
    """Units that the store did not take: `uncounted` are missing from the totals of users without a limit,
    `unreturned` were taken ahead, or for an answer that does not count, and stay spent."""


class BackgroundWrites:
    """Writes under way, at most `MAX_BACKGROUND_WRITES`. Each is bounded by the limiter's deadline."""

    def __init__(self, stats: LimiterStats, tasks: Tasks | Deferred) -> None:
        self.stats = stats
        self._tasks = tasks

    @property
    def is_full(self) -> bool:
        """Return whether the next write should rather be waited for."""
        return self._tasks.is_full

    def start(self, write: Awaitable[object], *, units: int = 0, loss: Loss | None = None) -> None:
        """See the write through, whoever asked for it having gone on. Without a `loss`, nobody misses what fails."""
        self._tasks.start(self.see_through(write, units, loss))

    async def see_through(self, write: Awaitable[object], units: int, loss: Loss | None) -> None:
        """Wait for the write, and count what is lost by it."""
        try:
            await write
        except StoreUnavailable as error:
            if loss is None:
                return
            if not self.stats.lost[loss]:
                logger.warning("units are %s: %s", loss, error)
            self.stats.lost[loss] += units

    async def drain(self) -> None:
        """Return when all that was started by now has ended, whatever is started meanwhile."""
        await self._tasks.drain()

    def forget(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Forget what was under way in other loops: it does not end any more."""
        self._tasks.forget(loop)
