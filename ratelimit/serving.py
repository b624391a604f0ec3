"""Runs an ASGI app as a process of its own: sockets, workers, logs, and leaving without cutting anybody off.

uvicorn serves, on uvloop and httptools. At SIGTERM or SIGINT it stops accepting, finishes what runs, and then the
lifespan ends: refunds and the usage log are drained. At SIGHUP several workers are replaced one after the other.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from starlette.types import ASGIApp

from ratelimit.errors import ConfigError

_NEEDED: Final = ("aiohttp", "httptools", "uvicorn", "websockets")
_BACKLOG: Final = 2048
# A header section larger than this is refused by the server with a 400 (httptools' own bounds hold below it).
_MAX_MESSAGE: Final = 16 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where to listen: on a unix socket if one is named."""

    host: str = "127.0.0.1"
    port: int = 8080
    uds: str | None = None

    def bind(self) -> socket.socket:
        """A socket that listens. Raises `ConfigError` naming the option that is to blame."""
        try:
            return self._unix(self.uds) if self.uds else self._tcp()
        except OSError as error:
            option, where = ("--uds", self.uds) if self.uds else ("--port", f"{self.host}:{self.port}")
            raise ConfigError(option, f"cannot listen on {where}: {error.strerror or error}") from error

    def _tcp(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        listening = socket.create_server((self.host, self.port), family=family, backlog=_BACKLOG)
        # What is small and last of an answer does not wait for an acknowledgement; connections inherit it on Linux.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening

    def _unix(self, path: str) -> socket.socket:
        if os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode):
            _take_away(path)
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(path)
        listening.listen(_BACKLOG)
        return listening


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """How to serve. `grace`: seconds that running requests have at the end before they are cut off."""

    address: Address
    workers: int = 1
    grace: int = 30

    def run(self, make: Callable[[], ASGIApp], announce: Callable[[str], None]) -> int:
        """Serve until told to leave; the exit status. `make` is called in each worker, so it has to pickle.

        `announce` is told where it listens, once it does.
        """
        import uvicorn

        listening = self.address.bind()
        config = uvicorn.Config(make, **self._options())
        announce(self._where(listening))
        try:
            if self.workers > 1:
                return _many(config, listening)
            server = uvicorn.Server(config)
            # uvicorn raises the signal that ended it once more when it is done: to leave as asked is no failure.
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: None)
            server.run(sockets=[listening])
            return 0 if server.started else 3
        finally:
            listening.close()
            if self.address.uds:
                Path(self.address.uds).unlink(missing_ok=True)

    def _options(self) -> dict[str, Any]:
        return {
            "factory": True,
            "workers": self.workers,
            "loop": "uvloop" if find_spec("uvloop") else "asyncio",
            "http": "httptools",
            "ws": "websockets-sansio",
            "ws_max_size": _MAX_MESSAGE,
            "lifespan": "on",
            # Who the client is, is for the middleware to say: it knows which proxies are trusted.
            "proxy_headers": False,
            "server_header": False,
            "date_header": False,
            "access_log": False,
            "log_config": LOGGING,
            "timeout_keep_alive": 75,
            "timeout_graceful_shutdown": self.grace,
            "backlog": _BACKLOG,
        }

    def _where(self, listening: socket.socket) -> str:
        if self.address.uds:
            return f"unix:{self.address.uds}"
        host, port = listening.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def missing() -> list[str]:
    """What has to be installed first."""
    return [name for name in _NEEDED if find_spec(name) is None]


def _many(config: Any, listening: socket.socket) -> int:
    from uvicorn.supervisors import Multiprocess

    listening.set_inheritable(True)
    supervisor = Multiprocess(config, sockets=[listening])
    supervisor.run()
    asked_to = (None, 0, -signal.SIGTERM, -signal.SIGINT)
    return 0 if all(process.exitcode in asked_to for process in supervisor.processes) else 3


def _take_away(path: str) -> None:
    """A socket that nobody listens on any more. Raises `OSError` where somebody does."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        else:
            raise OSError(98, "somebody listens there")


class _NotOurs(logging.Filter):
    """An answer that broke off is said once, by the proxy, with the reason."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("ASGI callable returned without completing")


LOGGING: Final[dict[str, Any]] = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {"not_ours": {"()": _NotOurs}},
    "formatters": {
        "plain": {"format": "%(message)s"},
        "told": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"},
    },
    "handlers": {
        "out": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "plain"},
        "err": {
            "class": "logging.StreamHandler", "stream": "ext://sys.stderr", "formatter": "told",
            "filters": ["not_ours"],
        },
    },
    "loggers": {
        "ratelimit.access": {"handlers": ["out"], "level": "INFO", "propagate": False},
        "ratelimit": {"handlers": ["err"], "level": "INFO"},
        "uvicorn": {"handlers": ["err"], "level": "WARNING", "propagate": False},
    },
}  # fmt: skip
