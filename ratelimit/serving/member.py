"""One worker of several: a process of its own, and the pipe that its supervisor gives orders by."""

from __future__ import annotations

import asyncio
import contextlib
import logging.config
import multiprocessing
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from ratelimit.errors import RateLimitError
from ratelimit.serving.leaving import Leaving
from ratelimit.serving.logs import LOGGING
from ratelimit.serving.worker import NOT_STARTED, MakeSidecar, Worker, on_a_loop

LEAVE: Final = b"leave"
HAND_OVER: Final = b"hand over"
RELOAD: Final = b"reload"
STARTED: Final = b"started"

# Not forked: a fork would inherit the supervisor's loop, and a new worker is to find new code.
_processes = multiprocessing.get_context("spawn")

logger = logging.getLogger("ratelimit.serving")


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker needs for its work. It has to pickle."""

    make: MakeSidecar
    public: socket.socket
    admin: socket.socket | None
    siblings: Path
    leaving: Leaving


class Member:
    """The supervisor's view of a worker. Made within its event loop; starts at once."""

    def __init__(self, task: Task) -> None:
        self._pipe, theirs = _processes.Pipe()
        self._process = _processes.Process(target=_work, args=(task, theirs))
        self._process.start()
        theirs.close()
        self.pid = self._process.pid or 0
        loop = asyncio.get_running_loop()
        self.started: asyncio.Future[bool] = loop.create_future()
        """Whether it serves, or has ended before it could."""
        self.ended: asyncio.Future[int] = loop.create_future()
        """Its exit status."""
        loop.add_reader(self._pipe.fileno(), self._heard)
        loop.add_reader(self._process.sentinel, self._over)

    def tell(self, order: bytes) -> None:
        """Nothing happens where it has ended already."""
        with contextlib.suppress(OSError):
            self._pipe.send_bytes(order)

    def kill(self) -> None:
        """At once."""
        self._process.kill()

    def _heard(self) -> None:
        try:
            self._pipe.recv_bytes()
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())
        else:
            if not self.started.done():
                self.started.set_result(True)

    def _over(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._process.sentinel)
        loop.remove_reader(self._pipe.fileno())
        self._pipe.close()
        self._process.join()
        status = self._process.exitcode or 0
        self._process.close()
        if not self.started.done():
            self.started.set_result(False)
        self.ended.set_result(status)


def _work(task: Task, orders: Connection) -> None:
    """The worker's process from beginning to end."""
    # What a terminal sends goes to every process of the group; here the supervisor says what is to be done.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    logging.config.dictConfig(LOGGING)
    sys.exit(on_a_loop(_serve(task, orders)))


async def _serve(task: Task, orders: Connection) -> int:
    try:
        sidecar = task.make(siblings=task.siblings)
    except RateLimitError as error:
        logger.error("a worker cannot start: %s", error)
        return NOT_STARTED
    worker = Worker(sidecar, task.public, task.admin, task.leaving)
    acts: dict[bytes, Callable[[], None]] = {
        LEAVE: worker.leave,
        HAND_OVER: worker.hand_over,
        RELOAD: worker.reload,
    }
    loop = asyncio.get_running_loop()

    def heard() -> None:
        try:
            acts[orders.recv_bytes()]()
        except (EOFError, OSError):
            # The supervisor is gone, and nobody would ever tell this worker to leave.
            loop.remove_reader(orders.fileno())
            worker.leave()

    loop.add_reader(orders.fileno(), heard)
    loop.add_signal_handler(signal.SIGTERM, worker.leave)
    status = await worker.run(lambda: orders.send_bytes(STARTED))
    loop.remove_reader(orders.fileno())
    return status
