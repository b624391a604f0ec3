"""One worker, in the process that was started: it takes the signals itself."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from ratelimit.serving.address import Listening
from ratelimit.serving.leaving import Leaving
from ratelimit.serving.signals import on_signals
from ratelimit.serving.worker import MakeSidecar, Worker

logger = logging.getLogger("ratelimit.serving")


async def serve_alone(
    make: MakeSidecar, public: Listening, admin: Listening | None, leaving: Leaving, announce: Callable[[], None]
) -> int:
    """Serve until told to leave; the exit status."""
    # A loop closes what it serves from, and the address is its owner's to take down.
    sockets = public.socket.dup(), None if admin is None else admin.socket.dup()
    worker = Worker(make(), *sockets, leaving)

    def leave() -> None:
        asyncio.get_running_loop().call_later(leaving.accepts, public.close)
        worker.leave()

    on_signals(leave=leave, at_once=lambda: None, reload=worker.reload, replace=_no_other)
    return await worker.run(announce)


def _no_other() -> None:
    logger.warning("SIGUSR2 replaces workers one after the other, and here is only one: start with --workers 2")
