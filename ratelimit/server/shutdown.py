"""How a serving process is told to end, and how long that takes."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

logger = logging.getLogger("ratelimit.serving")

ECHO_S: Final = 0.05
"""uvloop tells of a signal twice at times, when another comes right before it; nobody asks twice as soon as that."""


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


def on_signals(
    *,
    stop: Callable[[], None],
    at_once: Callable[[], None],
    reload: Callable[[], None],
    replace: Callable[[], None],
) -> None:
    """Call these from the running event loop: `stop` at SIGTERM or SIGINT, `reload` at SIGHUP, `replace` at SIGUSR2.

    `at_once` is called at the second request to stop, before the process ends on the spot: with the signal's number and
    128, as shells count.
    """
    loop = asyncio.get_running_loop()
    asked: list[float] = []

    def on_stop(number: int) -> None:
        now = loop.time()
        if not asked:
            asked.append(now)
            stop()
            return
        if now - asked[0] < ECHO_S:
            return
        logger.warning("told twice to leave: leaving at once, what runs is cut off")
        at_once()
        logging.shutdown()
        os._exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_stop, number)
    loop.add_signal_handler(signal.SIGHUP, reload)
    loop.add_signal_handler(signal.SIGUSR2, replace)
