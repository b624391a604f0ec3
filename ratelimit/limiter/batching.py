"""Checks for one key while a write of it is under way wait for that write, and then go out together as one.

DynamoDB takes at most 1,000 writes a second of one item; this lets one popular user, or one abusive one, be checked
tens of thousands of times a second. A key with no write under way goes straight out: no task, no queue.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Generic, TypeAlias, TypeVar

from ratelimit.clock import Clock
from ratelimit.errors import StoreThrottled, StoreUnavailable
from ratelimit.limiter.compiled_policy import CompiledPolicy
from ratelimit.limiter.deadline import SharedTimer
from ratelimit.names import Key
from ratelimit.tasks import Tasks

MAX_QUEUED_CHECKS: Final = 10_000
"""Of one record."""

BatchKey: TypeAlias = tuple[Key, CompiledPolicy]
C = TypeVar("C")
A = TypeVar("A")
_Waiter: TypeAlias = tuple[C, asyncio.Future[A]]
"""What a check costs, and its answer when there is one."""
_Queue: TypeAlias = deque[_Waiter[C, A]]
SpendMany: TypeAlias = Callable[[CompiledPolicy, Key, int, Sequence[C]], Awaitable[list[A]]]


class Coalescer(Generic[C, A]):
    """One write at a time for a user, an action and its quotas. `spend_many` sends several costs at once, in order.

    Whoever finds nobody writing begins, writes, and ends; others enqueue. First come, first served: what fits of a
    batch is admitted in the order of arrival. A check waits at most `deadline` seconds; one that gives up, or is
    cancelled, before its batch left has spent nothing and holds up nobody.
    """

    def __init__(self, spend_many: SpendMany[C, A], clock: Clock, deadline: float) -> None:
        self._spend_many = spend_many
        self._clock = clock
        self._timer: SharedTimer[asyncio.Future[A]] = SharedTimer(deadline, _give_up)
        self._queues: dict[BatchKey, _Queue[C, A] | None] = {}
        """What a write is under way for, and who waits for its end, if anybody does."""
        self._tasks = Tasks("a batch of checks")
        self._loop: asyncio.AbstractEventLoop | None = None

    def begin(self, batch_key: BatchKey) -> bool:
        """Note that a write is under way, until it ends; return False where one is already."""
        if batch_key in self._queues:
            return False
        self._queues[batch_key] = None
        return True

    def end(self, batch_key: BatchKey) -> None:
        """Note that it has ended; those who wait are next."""
        queue = self._queues.pop(batch_key, None)
        if queue:
            self._queues[batch_key] = queue
            self._tasks.start(self._send_queue(batch_key, queue))

    def enqueue(self, batch_key: BatchKey, cost: C) -> asyncio.Future[A]:
        """Return the decision on `cost`, by a write that leaves when the present one ends; or `StoreUnavailable`."""
        queue = self._queues[batch_key]
        if queue is None:
            queue = self._queues[batch_key] = deque()
        if len(queue) >= MAX_QUEUED_CHECKS:
            raise StoreThrottled(f"{MAX_QUEUED_CHECKS} checks wait for one record already")
        loop = asyncio.get_running_loop()
        decision: asyncio.Future[A] = loop.create_future()
        queue.append((cost, decision))
        self._timer.watch(decision, loop)
        return decision

    async def finish(self) -> None:
        """Return when those who wait by now have their answers, or when they would have given up."""
        self.forget(asyncio.get_running_loop())
        waiting = [decision for queue in self._queues.values() if queue for _, decision in queue]
        if waiting:
            await asyncio.wait(waiting, timeout=self._timer.deadline)
        await self._tasks.drain(self._timer.deadline)

    def forget(self, loop: asyncio.AbstractEventLoop) -> None:
        """Forget the writes that were under way in another loop: they do not end any more."""
        if self._loop is not loop:
            self._loop = loop
            self._queues.clear()
            self._tasks.forget(loop)

    def __len__(self) -> int:
        return len(self._queues)

    async def _send_queue(self, batch_key: BatchKey, queue: _Queue[C, A]) -> None:
        key, compiled = batch_key
        try:
            while batch := _next_batch(queue):
                await self._flush(batch, compiled, key)
                # Those who were answered just now may ask again at once: a turn of the loop later they leave with the
                # rest, and a write carries twice as many. But what else they do in that turn, many do not wait for,
                # and a single one finds nobody writing.
                if len(batch) > max(1, len(queue)):
                    await asyncio.sleep(0)
        finally:
            self._queues.pop(batch_key, None)
            for _, decision in queue:  # only where this task itself was cancelled
                decision.cancel()

    async def _flush(self, batch: list[_Waiter[C, A]], compiled: CompiledPolicy, key: Key) -> None:
        try:
            made = await self._spend_many(compiled, key, self._clock.now(), [cost for cost, _ in batch])
        except asyncio.CancelledError:
            for _, decision in batch:
                decision.cancel()
            raise
        except Exception as error:  # noqa: BLE001 (passed on to those who wait, whom nothing may leave hanging)
            for _, decision in batch:
                if not decision.done():
                    decision.set_exception(error)
            return
        for (_, decision), outcome in zip(batch, made, strict=True):
            if not decision.done():
                decision.set_result(outcome)


def _give_up(decision: asyncio.Future[Any]) -> None:
    decision.set_exception(StoreUnavailable("no turn at the record within the deadline"))


def _next_batch(queue: _Queue[C, A]) -> list[_Waiter[C, A]]:
    """Return the next batch, in order of arrival, without those who gave up."""
    batch = [waiter for waiter in queue if not waiter[1].done()]
    queue.clear()
    return batch
