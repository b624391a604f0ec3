"""`Worker`: one process's share of the serving: the app and the admin listener on one event loop, and one end."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
from collections.abc import Callable, Coroutine
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from ratelimit.errors import RateLimitError
from ratelimit.server.address import Listening
from ratelimit.server.listener import Listener, StartFailed
from ratelimit.server.shutdown import ShutdownTimeouts, on_signals
from ratelimit.server.sidecar import Sidecar

logger = logging.getLogger("ratelimit.serving")


DONE: Final = 0
NOT_STARTED: Final = 3

_ADMIN_GRACE_S: Final = 1.0

T = TypeVar("T")


class SidecarFactory(Protocol):
    """Makes what a worker serves; has to pickle where there are several. `bus_dir` as in `sidecar`."""

    def __call__(self, *, bus_dir: Path | None = None) -> Sidecar:
        """Raises `ConfigError`."""


class Worker:
    """`leave`, `hand_over` and `reload` are for signal handlers: they return at once."""

    def __init__(
        self, sidecar: Sidecar, public: socket.socket, admin: socket.socket | None, shutdown: ShutdownTimeouts
    ) -> None:
        self._sidecar = sidecar
        self._public = Listener(sidecar.app, public, refused=sidecar.refused)
        self._admin = None if admin is None or sidecar.admin is None else Listener(sidecar.admin, admin)
        self._shutdown = shutdown
        self._told = asyncio.Event()
        self._reloading: asyncio.Task[None] | None = None
        self._reload_again = False

    async def run(self, started: Callable[[], None]) -> int:
        """Serve until told to leave; the exit status."""
        try:
            await self._start()
        except StartFailed:
            return NOT_STARTED
        _settle()
        started()
        await self._told.wait()
        await self._end()
        return DONE

    def leave(self) -> None:
        """The whole service ends: whoever asks whether it is ready is told that it is not."""
        self._sidecar.leaving = True
        self._told.set()

    def hand_over(self) -> None:
        """Others go on."""
        self._told.set()

    def reload(self) -> None:
        """Take the configuration as it is now. What is wrong with it is in the log, and nothing has changed then."""
        self._reload_again = True
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.create_task(self._reload())

    async def _start(self) -> None:
        await self._public.start()
        if self._admin is not None:
            await self._admin.start()

    async def _end(self) -> None:
        """The admin listener last: it tells how the leaving goes."""
        await self._public.leave(linger=self._shutdown.linger, grace=self._shutdown.grace)
        await self._public.stop()
        if self._admin is not None:
            await self._admin.leave(linger=0, grace=_ADMIN_GRACE_S)
            await self._admin.stop()

    async def _reload(self) -> None:
        while self._reload_again:
            self._reload_again = False
            try:
                await self._sidecar.reload()
            except RateLimitError:
                continue
            gc.unfreeze()
            _settle()


def run_on_loop(main: Coroutine[Any, Any, T]) -> T:
    """Run to the end, on uvloop where there is one."""
    if find_spec("uvloop") is None:
        return asyncio.run(main)
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def _settle() -> None:
    """What there is now is there for good: the garbage collector need not walk over it again and again.

    That is 67,000 objects and 42 ms for each full collection, and under load some 15 to 60 µs of CPU a proxied request.
    """
    gc.collect()
    gc.freeze()


# One worker, in the process that was started: it takes the signals itself.


async def serve_single(
    make: SidecarFactory,
    public: Listening,
    admin: Listening | None,
    shutdown: ShutdownTimeouts,
    announce: Callable[[], None],
) -> int:
    """Serve until told to leave; the exit status."""
    # A loop closes what it serves from, and the address is its owner's to take down.
    sockets = public.socket.dup(), None if admin is None else admin.socket.dup()
    worker = Worker(make(), *sockets, shutdown)

    def leave() -> None:
        asyncio.get_running_loop().call_later(shutdown.accepts, public.close)
        worker.leave()

    on_signals(leave=leave, at_once=lambda: None, reload=worker.reload, replace=_no_other)
    return await worker.run(announce)


def _no_other() -> None:
    logger.warning("SIGUSR2 replaces workers one after the other, and here is only one: start with --workers 2")
