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
from ratelimit.server.shutdown import Leaving, on_signals
from ratelimit.server.worker import DONE, NOT_STARTED, MakeSidecar, Worker, on_a_loop

logger = logging.getLogger("ratelimit.serving")


# One worker of several: a process of its own, and the pipe that its supervisor gives orders by.

LEAVE: Final = b"leave"
HAND_OVER: Final = b"hand over"
RELOAD: Final = b"reload"
STARTED: Final = b"started"

# Not forked: a fork would inherit the supervisor's loop, and a new worker is to find new code.
_processes = multiprocessing.get_context("spawn")


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


START_S: Final = 120.0
"""A new worker that does not serve by then is given up."""
_PAUSES_S: Final = (0.0, 1.0, 5.0, 30.0)
_AFTER_GRACE_S: Final = 60.0


class Supervisor:
    """`refresh` reads the configuration, and raises `ConfigError` where it is bad: then no worker hears of it."""

    def __init__(self, task: Task, workers: int, public: Listening, refresh: Callable[[], object]) -> None:
        self._task = task
        self._workers = workers
        self._public = public
        self._refresh = refresh
        self._members: dict[int, Member] = {}
        self._others: set[Member] = set()
        """Those that are to take a place, or have left theirs."""
        self._told = asyncio.Event()
        self._replacing: asyncio.Task[None] | None = None

    async def run(self, announce: Callable[[], None]) -> int:
        """Serve until told to leave; the exit status."""
        on_signals(leave=self._leave, at_once=self._kill, reload=self._reload, replace=self._replace)
        self._members = {place: Member(self._task) for place in range(self._workers)}
        started = all(await asyncio.gather(*(member.started for member in self._members.values())))
        if not started:
            self._told.set()
            return await self._end(NOT_STARTED)
        if not self._told.is_set():
            announce()
        async with asyncio.TaskGroup() as group:
            keeping = [group.create_task(self._keep(place)) for place in self._members]
            await self._told.wait()
            for task in keeping:
                task.cancel()
        if self._replacing is not None:
            self._replacing.cancel()
        return await self._end(DONE)

    def _leave(self) -> None:
        asyncio.get_running_loop().call_later(self._task.leaving.accepts, self._public.close)
        self._told.set()

    def _reload(self) -> None:
        try:
            self._refresh()
        except ConfigError as error:
            logger.error("the configuration is not reloaded, and the last good one holds: %s", error)
            return
        for member in self._members.values():
            member.tell(RELOAD)

    def _replace(self) -> None:
        if self._replacing is None or self._replacing.done():
            self._replacing = asyncio.create_task(self._replace_all())

    def _kill(self) -> None:
        for member in self._all():
            if not member.ended.done():
                member.kill()

    def _all(self) -> Iterable[Member]:
        return (*self._members.values(), *self._others)

    async def _keep(self, place: int) -> None:
        """A worker that ends by itself is replaced; the pauses grow while new ones do not come to serve."""
        failures = 0
        while True:
            member = self._members[place]
            status = await asyncio.shield(member.ended)
            if self._members[place] is not member:
                continue
            failures = 0 if member.started.result() else failures + 1
            logger.error("worker %d ended with status %d; another one takes its place", member.pid, status)
            await asyncio.sleep(_PAUSES_S[min(failures, len(_PAUSES_S) - 1)])
            if self._members[place] is member:
                self._members[place] = Member(self._task)

    async def _replace_all(self) -> None:
        """One after the other, a new one serving before the old one leaves. Ends with the first that does not start."""
        for place in list(self._members):
            new = Member(self._task)
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
            old, self._members[place] = self._members[place], new
            self._others.discard(new)
            await self._retire(old)
        logger.info("all %d workers are replaced", len(self._members))

    async def _retire(self, old: Member) -> None:
        self._others.add(old)
        old.tell(HAND_OVER)
        await self._until_ended([old])
        self._others.discard(old)

    async def _end(self, status: int) -> int:
        members = list(self._all())
        for member in members:
            member.tell(LEAVE)
        await self._until_ended(members)
        return status if all(member.ended.result() == DONE for member in members) else NOT_STARTED

    async def _until_ended(self, members: Iterable[Member]) -> None:
        """For as long as they may take; then they are killed."""
        waiting = {member.ended for member in members}
        leaving = self._task.leaving
        _, late = await asyncio.wait(waiting, timeout=max(leaving.linger, leaving.grace) + _AFTER_GRACE_S)
        if late:
            logger.error("%d workers did not leave in time and are killed", len(late))
            for member in members:
                if not member.ended.done():
                    member.kill()
            await asyncio.wait(waiting)
