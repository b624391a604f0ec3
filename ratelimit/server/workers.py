"""The processes that serve: `Worker` is the share of one; `Supervisor` keeps several running on the same sockets, tells
them what it is told, and replaces them in turn."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import logging.config
import multiprocessing
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from ratelimit.config.envoy import fingerprint
from ratelimit.errors import ConfigError, RateLimitError
from ratelimit.server.address import Listening
from ratelimit.server.listener import Listener, StartFailed
from ratelimit.server.serve import LOGGING, ShutdownTimeouts, on_signals
from ratelimit.server.sidecar import Sidecar

if TYPE_CHECKING:
    from ratelimit.server.envoy import GrpcListener

logger = logging.getLogger("ratelimit.serving")

DONE: Final = 0
NOT_STARTED: Final = 3

# A supervisor's orders, and a worker's answer.
STOP: Final = b"stop"
HAND_OVER: Final = b"hand over"
RELOAD: Final = b"reload"
STARTED: Final = b"started"

START_TIMEOUT_S: Final = 120.0
"""A new worker that does not serve by then is given up."""
_RESTART_PAUSES_S: Final = (0.0, 1.0, 5.0, 30.0)
_KILL_AFTER_S: Final = 60.0
"""So long beyond its grace a worker may take to leave."""
_ADMIN_GRACE_S: Final = 1.0
_WATCH_INTERVAL_S: Final = 0.5

# Not forked: a fork would inherit the supervisor's loop, and a new worker is to find new code.
_processes = multiprocessing.get_context("spawn")

T = TypeVar("T")


SidecarFactory: TypeAlias = Callable[..., Sidecar]
"""Makes what a worker serves, given the `bus_dir` where there are several; has to pickle then. Raises `ConfigError`."""


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker needs for its work. It has to pickle where there are several, who meet in `bus_dir`."""

    make: SidecarFactory
    shutdown: ShutdownTimeouts
    public: socket.socket
    admin: socket.socket | None = None
    grpc: socket.socket | None = None
    bus_dir: Path | None = None


class Worker:
    """Serve the app, gRPC and the admin listener on one event loop. `stop`, `hand_over` and `reload` are for signal
    handlers: they return at once."""

    def __init__(self, sidecar: Sidecar, spec: WorkerSpec) -> None:
        self._sidecar = sidecar
        self._shutdown = spec.shutdown
        self._public = Listener(sidecar, spec.public)
        self._grpc = None if spec.grpc is None else _grpc_listener(sidecar, spec.grpc)
        self._admin: Listener | None = None
        if spec.admin is not None and sidecar.admin is not None:
            self._admin = Listener(sidecar.admin, spec.admin)
        self._stopping = asyncio.Event()
        self._reloading: asyncio.Task[None] | None = None
        self._reload_again = False

    async def run(self, started: Callable[[], None]) -> int:
        """Serve until told to stop, and return the exit status."""
        try:
            await self._public.start()
            if self._grpc is not None:
                await self._grpc.start()
            if self._admin is not None:
                await self._admin.start()
        except StartFailed:
            return NOT_STARTED
        _freeze()
        started()
        watching = asyncio.create_task(self._watch())
        await self._stopping.wait()
        watching.cancel()
        await self._end()
        return DONE

    def stop(self) -> None:
        """End, as the whole service does: whoever asks whether it is ready is told that it is not."""
        self._sidecar.stopping = True
        self._stopping.set()

    def hand_over(self) -> None:
        """End, while others go on."""
        self._stopping.set()

    def reload(self) -> None:
        """Take the configuration as it is now. What is wrong with it is in the log, and nothing has changed then."""
        self._reload_again = True
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.create_task(self._reload())

    async def _end(self) -> None:
        # The admin listener last: it tells how the end goes. With the public one the app ends, which gRPC needs.
        listeners: list[Listener | GrpcListener] = [self._public] if self._grpc is None else [self._grpc, self._public]
        times = self._shutdown
        await asyncio.gather(*(each.drain(linger=times.linger, grace=times.grace) for each in listeners))
        for listener in listeners:
            await listener.stop()
        if self._admin is not None:
            await self._admin.drain(linger=0, grace=_ADMIN_GRACE_S)
            await self._admin.stop()

    async def _watch(self) -> None:
        """Reload when the files of Envoy's rules have changed, and stayed so for a moment: nobody is in the middle."""
        tried = before = self._sidecar.current.runtime.config.envoy_config.fingerprint
        while True:
            await asyncio.sleep(_WATCH_INTERVAL_S)
            rules = self._sidecar.current.runtime.config.envoy_config
            now = fingerprint(rules.place) if rules else None
            if now == before and now not in (tried, rules.fingerprint):
                tried = now
                self.reload()
            before = now

    async def _reload(self) -> None:
        while self._reload_again:
            self._reload_again = False
            try:
                await self._sidecar.reload()
            except RateLimitError:
                continue
            gc.unfreeze()
            _freeze()


def _grpc_listener(sidecar: Sidecar, sock: socket.socket) -> GrpcListener:
    # Imported here: it needs the extra `envoy`.
    from ratelimit.server.envoy import GrpcListener, grpc_methods

    return GrpcListener(grpc_methods(sidecar), sock)


def _freeze() -> None:
    """Keep the garbage collector from walking again and again over what is there for good.

    That is 67,000 objects and 42 ms for each full collection, and under load some 15 to 60 µs of CPU a proxied request.
    """
    gc.collect()
    gc.freeze()


def run_on_loop(main: Coroutine[Any, Any, T]) -> T:
    """Run to the end, on uvloop where there is one."""
    if find_spec("uvloop") is None:
        return asyncio.run(main)
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


async def serve_single(spec: WorkerSpec, listening: Iterable[Listening], announce: Callable[[], None]) -> int:
    """Serve from this process alone, which takes the signals itself. Return the exit status."""
    # A loop closes what it serves from, and the address is its owner's to take down.
    admin, grpc = (None if each is None else each.dup() for each in (spec.admin, spec.grpc))
    worker = Worker(spec.make(), replace(spec, public=spec.public.dup(), admin=admin, grpc=grpc))

    def stop() -> None:
        for each in listening:
            asyncio.get_running_loop().call_later(spec.shutdown.accepts, each.close)
        worker.stop()

    def replace_them() -> None:
        logger.warning("SIGUSR2 replaces workers one after the other, and here is only one: start with --workers 2")

    on_signals(stop=stop, at_once=lambda: None, reload=worker.reload, replace=replace_them)
    return await worker.run(announce)


class WorkerProcess:
    """The supervisor's view of a worker. Made within its event loop; starts at once."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._pipe, theirs = _processes.Pipe()
        self._process = _processes.Process(target=_run_process, args=(spec, theirs))
        self._process.start()
        theirs.close()
        self.pid = self._process.pid or 0
        loop = asyncio.get_running_loop()
        self.started: asyncio.Future[bool] = loop.create_future()
        """Whether it serves, or has ended before it could."""
        self.ended: asyncio.Future[int] = loop.create_future()
        """Its exit status."""
        loop.add_reader(self._pipe.fileno(), self._on_message)
        loop.add_reader(self._process.sentinel, self._on_end)

    def tell(self, order: bytes) -> None:
        """Send an order; nothing happens where it has ended already."""
        with contextlib.suppress(OSError):
            self._pipe.send_bytes(order)

    def kill(self) -> None:
        if not self.ended.done():
            self._process.kill()

    def _on_message(self) -> None:
        try:
            self._pipe.recv_bytes()
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())
        else:
            if not self.started.done():
                self.started.set_result(True)

    def _on_end(self) -> None:
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


def _run_process(spec: WorkerSpec, orders: Connection) -> None:
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
    worker = Worker(sidecar, spec)
    actions: dict[bytes, Callable[[], None]] = {STOP: worker.stop, HAND_OVER: worker.hand_over, RELOAD: worker.reload}
    loop = asyncio.get_running_loop()

    def on_order() -> None:
        try:
            actions[orders.recv_bytes()]()
        except (EOFError, OSError):
            # The supervisor is gone, and nobody would ever tell this worker to stop.
            loop.remove_reader(orders.fileno())
            worker.stop()

    loop.add_reader(orders.fileno(), on_order)
    loop.add_signal_handler(signal.SIGTERM, worker.stop)
    status = await worker.run(lambda: orders.send_bytes(STARTED))
    loop.remove_reader(orders.fileno())
    return status


class Supervisor:
    """`refresh` reads the configuration, and raises `ConfigError` where it is bad: then no worker hears of it."""

    def __init__(
        self, spec: WorkerSpec, count: int, listening: Iterable[Listening], refresh: Callable[[], object]
    ) -> None:
        self._spec = spec
        self._count = count
        self._listening = list(listening)
        self._refresh = refresh
        self._workers: dict[int, WorkerProcess] = {}
        """By their slots."""
        self._others: set[WorkerProcess] = set()
        """Those that are to take a slot, or have left theirs."""
        self._stopping = asyncio.Event()
        self._replacing: asyncio.Task[None] | None = None

    async def run(self, announce: Callable[[], None]) -> int:
        """Serve until told to stop, and return the exit status."""
        on_signals(stop=self._stop, at_once=self._kill, reload=self._reload, replace=self._replace)
        self._workers = {slot: WorkerProcess(self._spec) for slot in range(self._count)}
        started = all(await asyncio.gather(*(worker.started for worker in self._workers.values())))
        if not started:
            self._stopping.set()
            return await self._end(NOT_STARTED)
        if not self._stopping.is_set():
            announce()
        async with asyncio.TaskGroup() as group:
            keeping = [group.create_task(self._keep(slot)) for slot in self._workers]
            await self._stopping.wait()
            for task in keeping:
                task.cancel()
        if self._replacing is not None:
            self._replacing.cancel()
        return await self._end(DONE)

    def _stop(self) -> None:
        for listening in self._listening:
            asyncio.get_running_loop().call_later(self._spec.shutdown.accepts, listening.close)
        self._stopping.set()

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
            worker.kill()

    def _all(self) -> Iterable[WorkerProcess]:
        return (*self._workers.values(), *self._others)

    async def _keep(self, slot: int) -> None:
        """Replace a worker that ends by itself; the pauses grow while new ones do not come to serve."""
        failures = 0
        while True:
            worker = self._workers[slot]
            status = await asyncio.shield(worker.ended)
            if self._workers[slot] is not worker:
                continue
            failures = 0 if worker.started.result() else failures + 1
            logger.error("worker %d ended with status %d; another one takes its place", worker.pid, status)
            await asyncio.sleep(_RESTART_PAUSES_S[min(failures, len(_RESTART_PAUSES_S) - 1)])
            if self._workers[slot] is worker:
                self._workers[slot] = WorkerProcess(self._spec)

    async def _replace_all(self) -> None:
        """Replace one after the other, each when its new one serves. Stop at the first that does not start."""
        for slot in list(self._workers):
            new = WorkerProcess(self._spec)
            self._others.add(new)
            try:
                serves = await asyncio.wait_for(asyncio.shield(new.started), START_TIMEOUT_S)
            except TimeoutError:
                new.kill()
                serves = False
            self._others.discard(new)
            if not serves:
                logger.error("a new worker did not start; the others stay as they are")
                return
            old, self._workers[slot] = self._workers[slot], new
            self._others.add(old)
            old.tell(HAND_OVER)
            await self._until_ended([old])
            self._others.discard(old)
        logger.info("all %d workers are replaced", len(self._workers))

    async def _end(self, status: int) -> int:
        workers = list(self._all())
        for worker in workers:
            worker.tell(STOP)
        await self._until_ended(workers)
        return status if all(worker.ended.result() == DONE for worker in workers) else NOT_STARTED

    async def _until_ended(self, workers: Iterable[WorkerProcess]) -> None:
        """Wait for as long as they may take, then kill them."""
        waiting = {worker.ended for worker in workers}
        shutdown = self._spec.shutdown
        _, late = await asyncio.wait(waiting, timeout=max(shutdown.linger, shutdown.grace) + _KILL_AFTER_S)
        if late:
            logger.error("%d workers did not leave in time and are killed", len(late))
            for worker in workers:
                worker.kill()
            await asyncio.wait(waiting)
