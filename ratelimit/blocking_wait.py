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

# Of each thread: `deadline`, when what it runs has to be over, as `monotonic` has it; `lock`, that of the `Runner` that
# runs it. (Made so since a class that is compiled has its values in one place for all threads.)
this_thread: Final[Any] = type("ThisThread", (threading.local,), {"deadline": inf, "lock": None})()


def wait_for(call: BlockingCall[T]) -> T:
    """Return what the call returns, while other threads may go on. Only in a coroutine that a `Runner` runs."""
    lock = this_thread.lock
    lock.release()
    try:
        left = this_thread.deadline - monotonic()
        if left <= 0:
            raise TimeoutError
        return call(left)
    except TimeoutError:
        if monotonic() < this_thread.deadline:
            raise
        raise asyncio.CancelledError from None
    finally:
        lock.acquire()


def seconds_left() -> float:
    """Return how long this thread may take for what it does."""
    deadline: float = this_thread.deadline
    return deadline - monotonic()


class BlockingDeadline:
    """`with Deadline(seconds):` ends the waits in it when the time is over. One inside of another cannot outlast it."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> Self:
        before: float = this_thread.deadline
        due = monotonic() + self._seconds
        if before < due:
            due = before
        self._before, self.due = before, due
        this_thread.deadline = due
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        this_thread.deadline = self._before
        if kind is asyncio.CancelledError and self.due < self._before:
            raise TimeoutError from error

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)
