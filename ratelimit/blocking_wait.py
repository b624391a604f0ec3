"""How a thread waits in a coroutine that a `Runner` runs, and until when: see `ratelimit/blocking.py`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from math import inf
from time import monotonic
from types import TracebackType
from typing import Any, Final, Self, TypeAlias, TypeVar

T = TypeVar("T")

BlockingCall: TypeAlias = Callable[[float], T]
"""Takes the seconds that it may block at most, and raises `TimeoutError` when they are over."""


class ThreadState:
    """What a thread runs: until when, as `monotonic` has it, and with the lock of which `Runner`."""

    __slots__ = ("deadline", "lock")

    def __init__(self) -> None:
        self.deadline = inf
        self.lock: Any = None


def _new_local() -> Any:
    """Make it so, since a class that is compiled has its values in one place for all threads; nor is a function that is
    compiled a method, but for one within another."""

    def begin(local: Any) -> None:
        local.state = ThreadState()

    return type("ThisThread", (threading.local,), {"__init__": begin})()


this_thread: Final = _new_local()
"""Its `state` is that of the thread that asks."""


def wait_for(call: BlockingCall[T]) -> T:
    """Return what the call returns, while other threads may go on. Only in a coroutine that a `Runner` runs."""
    thread: ThreadState = this_thread.state
    lock = thread.lock
    lock.release()
    try:
        left = thread.deadline - monotonic()
        if left <= 0:
            raise TimeoutError
        return call(left)
    except TimeoutError:
        if monotonic() < thread.deadline:
            raise
        raise asyncio.CancelledError from None
    finally:
        lock.acquire()


def seconds_left() -> float:
    """Return how long this thread may take for what it does."""
    thread: ThreadState = this_thread.state
    return thread.deadline - monotonic()


class BlockingDeadline:
    """`with Deadline(seconds):` ends the waits in it when the time is over. One inside of another cannot outlast it."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> Self:
        thread: ThreadState = this_thread.state
        self._before, self.due = thread.deadline, min(thread.deadline, monotonic() + self._seconds)
        thread.deadline = self.due
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        thread: ThreadState = this_thread.state
        thread.deadline = self._before
        if kind is asyncio.CancelledError and self.due < self._before:
            raise TimeoutError from error

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)
