"""`ShutdownTimeouts`: how long a worker takes to leave."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

logger = logging.getLogger("ratelimit.serving")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShutdownTimeouts:
    """`linger`: seconds in which clients are told to go by what they are answered. `grace`: seconds for what runs,
    `linger` included. After that come refunds and the usage log, by bounds of their own."""

    linger: float = 2.0
    grace: float = 15.0

    @property
    def accepts(self) -> float:
        """Seconds in which newcomers are let in: load balancers take a while to hear that a service leaves."""
        return min(self.linger, self.grace / 2)


# What signals mean to the process that was started: leave, leave at once, reload, replace the workers.

_LEAVE: Final = (signal.SIGTERM, signal.SIGINT)


def on_signals(
    *,
    leave: Callable[[], None],
    at_once: Callable[[], None],
    reload: Callable[[], None],
    replace: Callable[[], None],
) -> None:
    """Call these from the running event loop. `at_once` is called at the second request to leave, before the process
    ends on the spot: with the signal's number and 128, as shells count."""
    loop = asyncio.get_running_loop()
    asked: list[int] = []

    def told_to_leave(number: int) -> None:
        asked.append(number)
        if len(asked) == 1:
            leave()
            return
        logger.warning("told twice to leave: leaving at once, what runs is cut off")
        at_once()
        logging.shutdown()
        os._exit(128 + number)

    for number in _LEAVE:
        loop.add_signal_handler(number, told_to_leave, number)
    loop.add_signal_handler(signal.SIGHUP, reload)
    loop.add_signal_handler(signal.SIGUSR2, replace)
