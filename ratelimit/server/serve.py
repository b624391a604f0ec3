"""`Server`: bind the addresses, and serve from one worker in this process, or from several in their own."""

from __future__ import annotations

import asyncio
import logging
import logging.config
import os
import signal
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from ratelimit.server.address import Address

if TYPE_CHECKING:
    from ratelimit.server.workers import SidecarFactory

logger = logging.getLogger("ratelimit.serving")

# How a serving process is told to end, and how long that takes.

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
    *, stop: Callable[[], None], at_once: Callable[[], None], reload: Callable[[], None], replace: Callable[[], None]
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


# Access logs go to stdout as they are, everything else to stderr.
LOGGING: Final[dict[str, Any]] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "plain": {"format": "%(message)s"},
        "told": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"},
    },
    "handlers": {
        "out": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "plain"},
        "err": {"class": "logging.StreamHandler", "stream": "ext://sys.stderr", "formatter": "told"},
    },
    "loggers": {
        "ratelimit.access": {"handlers": ["out"], "level": "INFO", "propagate": False},
        "ratelimit": {"handlers": ["err"], "level": "INFO"},
    },
}  # fmt: skip

_NEEDED: Final = ("httptools", "prometheus_client")

Announce: TypeAlias = Callable[[str, str | None, str | None], None]
"""Told where it listens, where the admin listener does, and where gRPC is served, once all workers serve."""


def missing_packages(names: Iterable[str] = _NEEDED) -> list[str]:
    """Return what has to be installed first."""
    return [name for name in names if find_spec(name) is None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """How to serve. `admin`: where the admin listener is, `grpc`: where Envoy's service is; None for nowhere."""

    address: Address
    admin: Address | None = None
    grpc: Address | None = None
    workers: int = 1
    shutdown: ShutdownTimeouts = field(default_factory=ShutdownTimeouts)

    def run(self, make: SidecarFactory, refresh: Callable[[], object], announce: Announce) -> int:
        """Serve until told to leave, and return the exit status. Raises `ConfigError`.

        `refresh` reads the configuration in this process before several workers are told to read it in theirs; it
        raises `ConfigError` where that would not do.
        """
        # Imported here: it needs the extra `sidecar`.
        from ratelimit.server.workers import Supervisor, WorkerSpec, run_on_loop, serve_single

        logging.config.dictConfig(LOGGING)
        with ExitStack() as stack:
            public = stack.enter_context(closing(self.address.bind()))
            admin, grpc = (
                None if address is None else stack.enter_context(closing(address.bind()))
                for address in (self.admin, self.grpc)
            )
            say = partial(announce, public.where, *(None if each is None else each.where for each in (admin, grpc)))
            sockets = [None if each is None else each.socket for each in (admin, grpc)]
            spec = WorkerSpec(make, self.shutdown, public.socket, sockets[0], sockets[1])
            listening = [public] if grpc is None else [public, grpc]
            if self.workers == 1:
                return run_on_loop(serve_single(spec, listening, say))
            spec = replace(spec, bus_dir=Path(stack.enter_context(TemporaryDirectory(prefix="ratelimit-"))))
            return run_on_loop(Supervisor(spec, self.workers, listening, refresh).run(say))
