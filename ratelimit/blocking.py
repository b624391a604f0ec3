"""Coroutines run to their end by the thread that asks, without an event loop.

What an event loop gives to the code that runs on it, `Runner` gives here. Between two waits nobody else runs: a lock
sees to that. A wait is a blocking call, `wait_for(call)`, made without the lock. Where time runs out while one waits,
`CancelledError` is raised there, as a loop does.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from math import inf
from time import monotonic
from typing import Any, Final, TypeVar
from weakref import WeakSet

from ratelimit.blocking_wait import BlockingDeadline, ThreadState, this_thread, wait_for

T = TypeVar("T")

running_loop: Final = asyncio._get_running_loop
"""Returns the event loop that this thread runs; None where there is none."""

importing: Final = threading.RLock()
"""Held while a thread imports what takes its time: in a child forked meanwhile, which does not have that thread, nobody
would ever end it, and whoever imports the same would wait for ever."""

# No import takes so long, not even on a busy machine without byte code (nine seconds), unless it waits for one that the
# very thread which forks is in the middle of.
_LONGEST_IMPORT_S: Final = 60.0

logger: Final = logging.getLogger("ratelimit")


class InsideEventLoop(RuntimeError):
    """A blocking call in a thread that runs an event loop, which it would hold up."""


def refuse_event_loop(
    name: str, work: Coroutine[Any, Any, object] | None = None, *, package: str = "ratelimit"
) -> None:
    """Raise `InsideEventLoop` where one runs: `name` of the package is wanted there. `work` is not done then."""
    if running_loop() is not None:
        if work is not None:
            work.close()
        raise InsideEventLoop(
            f"this thread runs an event loop, which a blocking call would hold up; use `from {package} import {name}`"
        )


def is_blocking() -> bool:
    """Return whether this coroutine is run without an event loop."""
    return running_loop() is None


def loop_time() -> float:
    """Return the event loop's time, or `monotonic` without one."""
    loop = running_loop()
    return monotonic() if loop is None else loop.time()


def timeout(seconds: float) -> AbstractAsyncContextManager[object]:
    """Return what raises `TimeoutError` where its block has not ended by then, as `asyncio.timeout` does."""
    return BlockingDeadline(seconds) if is_blocking() else asyncio.timeout(seconds)


async def sleep(seconds: float) -> None:
    """Wait, with an event loop or without."""
    if is_blocking():
        wait_for(partial(_sleep, seconds))
    else:
        await asyncio.sleep(seconds)


async def aside(work: Callable[[], T]) -> T:
    """Return what the work does, which takes its time: in another thread, where an event loop would have to wait."""
    if is_blocking():
        return wait_for(lambda left: work())
    return await asyncio.to_thread(work)


def _sleep(seconds: float, left: float) -> None:
    time.sleep(min(seconds, left))
    if left < seconds:
        raise TimeoutError


class Signal:
    """Wakes a task or a thread that waits for it; whoever sets it may be in another thread."""

    __slots__ = ("_event", "_loop")

    def __init__(self) -> None:
        self._loop = running_loop()
        self._event = threading.Event() if self._loop is None else asyncio.Event()

    def set(self) -> None:
        """Wake whoever waits, now or later."""
        loop = self._loop
        if loop is None or loop is running_loop():
            self._event.set()
        elif not loop.is_closed():
            loop.call_soon_threadsafe(self._event.set)

    async def wait(self, seconds: float = inf) -> None:
        """Return when it is set, or after so many seconds."""
        event = self._event
        if isinstance(event, threading.Event):
            wait_for(partial(_wait_for_event, event, seconds))
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(None if seconds == inf else seconds):
                await event.wait()


def _wait_for_event(event: threading.Event, seconds: float, left: float) -> None:
    if not event.wait(min(seconds, left, threading.TIMEOUT_MAX)) and left < seconds:
        raise TimeoutError


class Runner:
    """Runs coroutines that share state, from any number of threads, as if they were tasks of one event loop."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        """Held while one of them runs, not while it waits."""
        self.later: deque[Coroutine[Any, Any, object]] = deque()
        """What is run besides, once what runs now has its result."""
        _runners.add(self)

    def run(self, work: Coroutine[Any, Any, T], name: str) -> T:
        """Return what the coroutine does. Raise `InsideEventLoop`, which says that `name` of `ratelimit` is wanted."""
        if running_loop() is not None:
            refuse_event_loop(name, work)
        with self.lock:
            result = self.run_on(work)
        if self.later:
            self.run_later()
        return result

    def run_later(self) -> None:
        """Run what was left for later, which may leave more."""
        while self.later:
            with self.lock:
                self.run_on(self.drain())

    def run_on(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it where the lock is held, once."""
        thread: ThreadState = this_thread.state
        outer, thread.lock = thread.lock, self.lock
        try:
            work.send(None)
        except StopIteration as done:
            result: T = done.value
            return result
        finally:
            thread.lock = outer
        work.close()
        raise RuntimeError(f"{work!r} waits for an event loop, and there is none")

    async def drain(self) -> None:
        """Run what was left for later."""
        while self.later:
            try:
                await self.later.popleft()
            except Exception:
                logger.exception("what was left to do after an answer failed")

    def start(self, work: Coroutine[Any, Any, T], what: str) -> Future[T]:
        """Run it in a thread of its own, which nobody waits for at the end of the program."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(self.run(work, what))
            except BaseException as error:  # noqa: BLE001 (of whoever asks for the result)
                future.set_exception(error)

        threading.Thread(target=run, name=f"ratelimit: {what}", daemon=True).start()
        return future

    def forget(self) -> None:
        """Leave what was left for later to the process that this one was forked from."""
        while self.later:
            self.later.popleft().close()


class Deferred:
    """What `Tasks` is on an event loop: work that is run by the thread that started it, once that has its answer."""

    is_full = False

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def start(self, work: Coroutine[Any, Any, object]) -> None:
        """Run the coroutine later."""
        self._runner.later.append(work)

    async def drain(self, timeout_s: float | None = None, *, cancel: bool = False) -> int:
        """Run now what was started by any thread. Return how much of it is late, which is none."""
        await self._runner.drain()
        return 0

    def forget(self, loop: object) -> None:
        """Do nothing: it belongs to no event loop."""


_runners: Final[WeakSet[Runner]] = WeakSet()
_forking: Final = threading.Lock()
_held: Final[list[Any]] = []
"""The locks that the thread which forks holds."""


def _before_fork() -> None:
    """Wait until no other thread is in the middle of anything, for it would never end in the child."""
    _forking.acquire()
    _held.append(_forking)
    for runner in list(_runners):
        runner.lock.acquire()
        _held.append(runner.lock)
    if importing.acquire(timeout=_LONGEST_IMPORT_S):
        _held.append(importing)


def _in_parent() -> None:
    while _held:
        _held.pop().release()


def _in_child() -> None:
    for runner in list(_runners):
        runner.forget()
    _in_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
