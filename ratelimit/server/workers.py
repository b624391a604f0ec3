"""`Supervisor`: keeps several workers running on the same sockets, passes orders on, and replaces them in turn."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import logging.config
import multiprocessing
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from ratelimit.errors import ConfigError, RateLimitError
from ratelimit.server.address import Listening
from ratelimit.server.serve import LOGGING
from ratelimit.server.shutdown import ShutdownTimeouts, on_signals
from ratelimit.server.worker import DONE, NOT_STARTED, SidecarFactory, Worker, run_on_loop

logger = logging.getLogger("ratelimit.serving")


# One worker of several: a process of its own, and the pipe that its supervisor gives orders by.

LEAVE: Final = b"leave"
HAND_OVER: Final = b"hand over"
RELOAD: Final = b"reload"
STARTED: Final = b"started"

# Not forked: a fork would inherit the supervisor's loop, and a new worker is to find new code.
_processes = multiprocessing.get_context("spawn")


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker needs for its work. It has to pickle."""

    make: SidecarFactory
    public: socket.socket
    admin: socket.socket | None
    bus_dir: Path
    shutdown: ShutdownTimeouts


class WorkerProcess:
    """The supervisor's view of a worker. Made within its event loop; starts at once."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._pipe, theirs = _processes.Pipe()
        self._process = _processes.Process(target=_work, args=(spec, theirs))
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


def _work(spec: WorkerSpec, orders: Connection) -> None:
    """The worker's process from beginning to end."""
    # What a terminal sends goes to every process of the group; here the supervisor says what is to be done.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    logging.config.dictConfig(LOGGING)
    sys.exit(run_on_loop(_serve(spec, orders)))


async def _serve(spec: WorkerSpec, orders: Connection) -> int:
    try:
        sidecar = spec.make(bus_dir=spec.bus_dir)
    except RateLimitError as error:
        logger.error("a worker cannot start: %s", error)
        return NOT_STARTED
    worker = Worker(sidecar, spec.public, spec.admin, spec.shutdown)
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


START_S: Final = 120.0
"""A new worker that does not serve by then is given up."""
_PAUSES_S: Final = (0.0, 1.0, 5.0, 30.0)
_AFTER_GRACE_S: Final = 60.0


class Supervisor:
    """`refresh` reads the configuration, and raises `ConfigError` where it is bad: then no worker hears of it."""

    def __init__(self, spec: WorkerSpec, workers: int, public: Listening, refresh: Callable[[], object]) -> None:
        self._spec = spec
        self._count = workers
        self._public = public
        self._refresh = refresh
        self._workers: dict[int, WorkerProcess] = {}
        self._others: set[WorkerProcess] = set()
        """Those that are to take a place, or have left theirs."""
        self._told = asyncio.Event()
        self._replacing: asyncio.Task[None] | None = None

    async def run(self, announce: Callable[[], None]) -> int:
        """Serve until told to leave; the exit status."""
        on_signals(leave=self._leave, at_once=self._kill, reload=self._reload, replace=self._replace)
        self._workers = {place: WorkerProcess(self._spec) for place in range(self._count)}
        started = all(await asyncio.gather(*(worker.started for worker in self._workers.values())))
        if not started:
            self._told.set()
            return await self._end(NOT_STARTED)
        if not self._told.is_set():
            announce()
        async with asyncio.TaskGroup() as group:
            keeping = [group.create_task(self._keep(place)) for place in self._workers]
            await self._told.wait()
            for task in keeping:
                task.cancel()
        if self._replacing is not None:
            self._replacing.cancel()
        return await self._end(DONE)

    def _leave(self) -> None:
        asyncio.get_running_loop().call_later(self._spec.shutdown.accepts, self._public.close)
        self._told.set()

    def _reload(self) -> None:
        try:
            self._refresh()
        except ConfigError as error:
            logger.error("the configuration is not reloaded, and the last good one holds: %s", error)
            return
        for worker in self._workers.values():
            worker.tell(RELOAD)

    def _replace(self) -> None:
        if self._replacing is None or self._replacing.done():
            self._replacing = asyncio.create_task(self._replace_all())

    def _kill(self) -> None:
        for worker in self._all():
            if not worker.ended.done():
                worker.kill()

    def _all(self) -> Iterable[WorkerProcess]:
        return (*self._workers.values(), *self._others)

    async def _keep(self, place: int) -> None:
        """A worker that ends by itself is replaced; the pauses grow while new ones do not come to serve."""
        failures = 0
        while True:
            worker = self._workers[place]
            status = await asyncio.shield(worker.ended)
            if self._workers[place] is not worker:
                continue
            failures = 0 if worker.started.result() else failures + 1
            logger.error("worker %d ended with status %d; another one takes its place", worker.pid, status)
            await asyncio.sleep(_PAUSES_S[min(failures, len(_PAUSES_S) - 1)])
            if self._workers[place] is worker:
                self._workers[place] = WorkerProcess(self._spec)

    async def _replace_all(self) -> None:
        """One after the other, a new one serving before the old one leaves. Ends with the first that does not start."""
        for place in list(self._workers):
            new = WorkerProcess(self._spec)
            self._others.add(new)
            try:
                serves = await asyncio.wait_for(asyncio.shield(new.started), START_S)
            except TimeoutError:
                new.kill()
                serves = False
            if not serves:
                self._others.discard(new)
                logger.error("a new worker did not start; the others stay as they are")
                return
            old, self._workers[place] = self._workers[place], new
            self._others.discard(new)
            await self._retire(old)
        logger.info("all %d workers are replaced", len(self._workers))

    async def _retire(self, old: WorkerProcess) -> None:
        self._others.add(old)
        old.tell(HAND_OVER)
        await self._until_ended([old])
        self._others.discard(old)

    async def _end(self, status: int) -> int:
        workers = list(self._all())
        for worker in workers:
            worker.tell(LEAVE)
        await self._until_ended(workers)
        return status if all(worker.ended.result() == DONE for worker in workers) else NOT_STARTED

    async def _until_ended(self, workers: Iterable[WorkerProcess]) -> None:
        """For as long as they may take; then they are killed."""
        waiting = {worker.ended for worker in workers}
        shutdown = self._spec.shutdown
        _, late = await asyncio.wait(waiting, timeout=max(shutdown.linger, shutdown.grace) + _AFTER_GRACE_S)
        if late:
            logger.error("%d workers did not leave in time and are killed", len(late))
            for worker in workers:
                if not worker.ended.done():
                    worker.kill()
            await asyncio.wait(waiting)
