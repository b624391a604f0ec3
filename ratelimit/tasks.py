"""`Tasks`: work that goes on behind the answer, kept hold of until it is done, and waited for at the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Generator
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")

logger: Final = logging.getLogger("ratelimit")


class Tasks:
    """A set of background tasks. Log what one of them raises, as "`what` failed".

    `limit` is for whoever starts them: when `is_full`, drop the work or wait for it instead. `start` takes it anyway.
    """

    __slots__ = ("_limit", "_tasks", "_what")

    def __init__(self, what: str, *, limit: int | None = None) -> None:
        self._what = what
        self._limit = limit
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def is_full(self) -> bool:
        """Return whether as many tasks run as may."""
        return self._limit is not None and len(self._tasks) >= self._limit

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run the coroutine in a task."""
        task = asyncio.get_running_loop().create_task(work)
        self.add(task)
        return task

    def add(self, task: asyncio.Task[Any]) -> None:
        """Keep hold of a task that somebody else has made."""
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def drain(self, timeout_s: float | None = None, *, cancel: bool = False) -> int:
        """Wait for the tasks that run by now, not for those that are started meanwhile. Return how many are late.

        With `cancel`, those are cancelled, and have ended when this returns.
        """
        self.forget(asyncio.get_running_loop())
        if not self._tasks:
            return 0
        _, late = await asyncio.wait(set(self._tasks), timeout=timeout_s)
        if late and cancel:
            await _cancel(late)
        return len(late)

    async def cancel(self) -> None:
        """Cancel all of them, and wait until they have ended."""
        self.forget(asyncio.get_running_loop())
        await _cancel(set(self._tasks))

    def forget(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Forget the tasks of any other loop than this one: they do not end any more."""
        self._tasks.difference_update([task for task in self._tasks if task.get_loop() is not loop])

    def __len__(self) -> int:
        return len(self._tasks)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("%s failed", self._what, exc_info=error)


async def _cancel(tasks: set[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


def start_now(work: Coroutine[Any, Any, T]) -> asyncio.Task[T] | None:
    """Run it as far as it goes without waiting, and the rest, if there is any, in a task, which is returned.

    For work that seldom waits: a task costs more than a check that is answered from memory. The first part has no
    current task, so that nothing in it may ask for one, as `asyncio.timeout` does. It must not raise.
    """
    try:
        awaited = work.send(None)
    except StopIteration:
        return None
    return asyncio.get_running_loop().create_task(_go_on(work, awaited))


async def _go_on(work: Coroutine[Any, Any, T], awaited: object) -> T:
    return await _Begun(work, awaited)


class _Begun(Generic[T]):
    """A coroutine that has begun, and waits for a future."""

    def __init__(self, work: Coroutine[Any, Any, T], awaited: object) -> None:
        self._work = work
        self._awaited = awaited

    def __await__(self) -> Generator[object, object, T]:
        work, awaited = self._work, self._awaited
        try:
            while True:
                try:
                    sent = yield awaited
                except BaseException as error:  # noqa: BLE001 (it is the coroutine's)
                    awaited = work.throw(error)
                else:
                    awaited = work.send(sent)
        except StopIteration as stop:
            value: T = stop.value
            return value
