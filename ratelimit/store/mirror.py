"""`MirrorStore`: decide by one store, write to two. To change stores is then a setting, and so is the way back.

What the first store has applied is written to the second one as well, out of the request's way, and without its
conditions: the decision has been made. A counter is added to, so that several processes may mirror into one record; a
bucket, which is one absolute number, is put. What fails there is counted, and never felt here. Only what is deleted is
deleted in both before the answer, and fails aloud: whoever asks for it relies on it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Hashable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from typing import Final, NamedTuple, TypeAlias, TypeVar

from ratelimit.cache import LRUCache
from ratelimit.errors import RateLimitError, StoreThrottled, StoreUnavailable
from ratelimit.event import UsageEvent
from ratelimit.names import Key
from ratelimit.settings import stat
from ratelimit.store.base import Add, EventStore, Expect, Op, Outcome, Put, Record, TableStore, Trace, Write
from ratelimit.store.delegating import DelegatingDirectoryStore, DelegatingEventStore, DelegatingStore
from ratelimit.store.directory import DirectoryStore, Entry, check_pair, name_of
from ratelimit.tasks import Tasks

logger = logging.getLogger("ratelimit")


MAX_WAITING: Final = 10_000
MAX_DIFFERENCES: Final = 100
MAX_CACHED_WRITES: Final = 256
_QUEUES: Final = 16
# Far beyond any answer: it only keeps a queue from waiting for ever.
_DEADLINE_S: Final = 5.0
_DRAIN_TIMEOUT_S: Final = 10.0
_FAILURES_PER_LINE: Final = 1000
_ATTEMPTS: Final = 5

T = TypeVar("T", bound=Entry)

Work: TypeAlias = Callable[[], Awaitable[object]]
Failure: TypeAlias = Exception | None


class MirrorDifference(NamedTuple):
    """A field that the mirror left at another value than the store that decides."""

    key: Key
    field: str
    decided: int
    mirrored: int | None
    """None where the mirror would not take the write at all."""


@dataclass(slots=True)
class MirrorStats:
    """How a mirror keeps up. Each bound that may be hit has a counter that shows it was."""

    written: int = stat("Writes that the mirror has taken.")
    failed: int = stat("Writes that the mirror did not take.")
    """It is behind by them."""
    dropped: int = stat("Writes that the mirror was not even given: too many waited.")
    different: int = stat("Writes after which a field stood elsewhere than in the store that decides.")
    """With several processes, two that write the same record at the same moment may show here and be equal a moment
    later: `MirrorStore.compare` tells."""
    waiting: int = stat("Writes that wait for the mirror.", gauge=True)
    differences: deque[MirrorDifference] = field(default_factory=lambda: deque(maxlen=MAX_DIFFERENCES))
    """The last ones."""


class _Entry(NamedTuple):
    work: Work
    done: asyncio.Future[Failure]


class MirrorQueue:
    """Work that follows an answer: bounded, and felt by nobody who does not ask. Belongs to one event loop.

    What has the same name is done one after the other, in the order in which it came.
    """

    def __init__(self) -> None:
        self.stats = MirrorStats()
        self._queues: list[deque[_Entry]] = [deque() for _ in range(_QUEUES)]
        self._workers = Tasks("a worker of the mirror")

    async def finish(self, name: Hashable, work: Work) -> None:
        """Have the work done, in its turn, and return when it is. Raises what went wrong, as `StoreUnavailable`."""
        entry = self.follow(name, work)
        if entry is None:
            raise StoreThrottled("the mirror does not keep up: too much waits for it; try again later")
        await asyncio.wait([entry.done])
        if error := entry.done.result():
            raise error

    async def drain(self) -> None:
        """Return when all that was to be done by now is done; what comes meanwhile is not waited for."""
        if last := [queue[-1].done for queue in self._queues if queue]:
            await asyncio.wait(last)

    async def stop(self) -> None:
        """Drain for some seconds at most; what is left then is counted as dropped."""
        try:
            async with asyncio.timeout(_DRAIN_TIMEOUT_S):
                while len(self._workers):
                    await self._workers.drain()
        except TimeoutError:
            left = self.stats.waiting
            await self._workers.cancel()
            for queue in self._queues:
                for entry in queue:
                    entry.done.set_result(StoreUnavailable("the mirror was closed"))
                queue.clear()
            self.stats.waiting = 0
            self._drop(left)

    def follow(self, name: Hashable, work: Work) -> _Entry | None:
        """Have the work done, later; return its place, or None where too much waits already."""
        if self.stats.waiting >= MAX_WAITING:
            self._drop(1)
            return None
        entry = _Entry(work, asyncio.get_running_loop().create_future())
        queue = self._queues[hash(name) % _QUEUES]
        self.stats.waiting += 1
        queue.append(entry)
        if len(queue) == 1:
            self._workers.start(self._work(queue))
        return entry

    async def _work(self, queue: deque[_Entry]) -> None:
        while queue:
            failure = await self._do(queue[0].work)
            queue.popleft().done.set_result(failure)
            self.stats.waiting -= 1

    async def _do(self, work: Work) -> Failure:
        try:
            async with asyncio.timeout(_DEADLINE_S):
                await work()
        except (RateLimitError, TimeoutError) as error:
            self.stats.failed += 1
            if self.stats.failed % _FAILURES_PER_LINE == 1:
                logger.warning(
                    "the mirror is behind by %d writes: %s", self.stats.failed, str(error) or "no answer in time"
                )
            return StoreUnavailable("the mirror gave no answer in time") if isinstance(error, TimeoutError) else error
        except Exception as error:  # hardly anybody waits for it, and the next write must not be lost to a bug in this
            self.stats.failed += 1
            logger.exception("a bug lost a write to the mirror")
            return error
        self.stats.written += 1
        return None

    def _drop(self, count: int) -> None:
        if self.stats.dropped % _FAILURES_PER_LINE + count >= _FAILURES_PER_LINE or not self.stats.dropped:
            logger.warning("the mirror does not keep up: %d writes were dropped so far", self.stats.dropped + count)
        self.stats.dropped += count


class MirrorStore(DelegatingStore):
    """A store that answers as `primary` does, and keeps `mirror` up to date. It opens and closes both."""

    def __init__(self, primary: TableStore, mirror: TableStore) -> None:
        super().__init__(primary)
        self.mirror = mirror
        self._queue = MirrorQueue()
        self.events = _MirroredEvents(primary.events, mirror.events, self._queue)
        self.directory = _MirroredDirectory(primary.directory, mirror.directory, self._queue)
        self._unconditional: LRUCache[Write, Write] = LRUCache(MAX_CACHED_WRITES)

    @property
    def stats(self) -> MirrorStats:
        return self._queue.stats

    async def open(self) -> None:
        """Open both. A mirror that cannot be opened keeps nobody waiting."""
        await self.inner.open()
        self._queue.follow(None, self.mirror.open)

    async def close(self) -> None:
        """Wait for what is still to be mirrored, some seconds at most, and close both."""
        await self._queue.stop()
        try:
            await self.mirror.close()
        finally:
            await self.inner.close()

    async def apply(self, key: Key, write: Write, *, now: int) -> Outcome:
        outcome = await self.inner.apply(key, write, now=now)
        if outcome.applied:
            self._queue.follow(key, lambda: self._repeat(key, write, outcome.record, now))
        return outcome

    async def apply_all(self, writes: Sequence[tuple[Key, Write]], *, now: int) -> Sequence[Outcome]:
        outcomes = await self.inner.apply_all(writes, now=now)
        if all(outcome.applied for outcome in outcomes):
            for key, write in writes:
                self._queue.follow(key, partial(self._repeat_untold, key, write, now))
        return outcomes

    async def delete(self, key: Key) -> None:
        await self.inner.delete(key)
        await self._queue.finish(key, lambda: self.mirror.delete(key))

    async def erase(self, users: Collection[str]) -> Mapping[Trace, int]:
        erased = await self.inner.erase(users)
        await self.settle()
        mirrored = await self.mirror.erase(users)
        return {trace: max(erased.get(trace, 0), mirrored.get(trace, 0)) for trace in {**erased, **mirrored}}

    async def settle(self) -> None:
        await self._queue.drain()

    async def compare(self, key: Key) -> Sequence[MirrorDifference]:
        """Return the fields of a record that are not the same in both. Raises `StoreUnavailable`, the mirror's too."""
        await self.settle()
        ours, theirs = await self.inner.read(key), await self.mirror.read(key)
        return [
            MirrorDifference(key, field, ours.get(field, 0), theirs.get(field))
            for field in sorted(set(ours) | set(theirs))
            if ours.get(field) != theirs.get(field)
        ]

    async def _repeat_untold(self, key: Key, write: Write, now: int) -> None:
        """Repeat a write whose outcome is not told: what is put as one number is read first."""
        absolute = _absolute(write)
        record = await self.inner.read(key) if absolute else {}
        await self._repeat(key, write, {field: record[field] for field in absolute if field in record}, now)

    async def _repeat(self, key: Key, write: Write, record: Record, now: int) -> None:
        outcome = await self.mirror.apply(key, self._without_conditions(write, record), now=now)
        found = [
            MirrorDifference(key, op.field, record[op.field], outcome.record.get(op.field) if outcome.applied else None)
            for op in write.ops
            if type(op) in (Add, Put)
            and op.field in record
            and (not outcome.applied or outcome.record.get(op.field) != record[op.field])
        ]
        if found:
            self.stats.different += 1
            self.stats.differences.extend(found)

    def _without_conditions(self, write: Write, record: Record) -> Write:
        """Return the same object for the same write that recurs: no outcome is in it."""
        known = self._unconditional.get(write)
        if known is not None:
            return known
        expected = {op.field: op for op in write.ops if type(op) is Expect}
        absolute = _absolute(write)
        ops: list[Op] = []
        for op in write.ops:
            if op.field in absolute:
                if type(op) is not Expect and op.field in record:
                    ops.append(Put(op.field, record[op.field]))
            else:
                ops += _repeated(op, expected)
        plain = Write(tuple(ops), write.expires_at, recurs=write.recurs)
        if write.recurs:
            self._unconditional.put(write, plain)
        return plain


def _absolute(write: Write) -> list[str]:
    """Return the fields that are put in the mirror as the number which they have, because that was planned from its own
    value (a bucket's), and is not only added to or given back."""
    expected = {op.field: op for op in write.ops if type(op) is Expect}
    return [
        op.field
        for op in write.ops
        if type(op) in (Add, Put)
        and (condition := expected.get(op.field)) is not None
        and not (type(op) is Add and op.amount < 0 and condition.low == -op.amount)
    ]


def _repeated(op: Op, expected: Mapping[str, Expect]) -> tuple[Op, ...]:
    if type(op) is Expect:
        return ()
    condition = expected.get(op.field)
    if condition is None or type(op) is Put:
        return (Add(op.field, op.amount),) if type(op) is Add else (op,)
    # No counter falls below zero, not even where the mirror began later: what is not there is neither given back nor
    # taken back from who has held it for too long.
    return (condition, Add(op.field, op.amount) if type(op) is Add else op)


class _MirroredEvents(DelegatingEventStore):
    def __init__(self, primary: EventStore, mirror: EventStore, queue: MirrorQueue) -> None:
        super().__init__(primary)
        self._mirror = mirror
        self._queue = queue

    async def put(self, events: Sequence[UsageEvent], *, timelines: Collection[str] = ()) -> Sequence[UsageEvent]:
        left = await self.inner.put(events, timelines=timelines)
        waiting = {id(event) for event in left}
        taken = [event for event in events if id(event) not in waiting]
        if taken:
            self._queue.follow(taken[0].user, lambda: self._repeat(taken, timelines))
        return left

    async def actions(self, user: str, day: date) -> Set[str]:
        """Those of both, as both are erased."""
        ours = await self.inner.actions(user, day)
        await self._queue.drain()
        return ours | await self._mirror.actions(user, day)

    async def erase(self, user: str, day: date) -> int:
        erased = await self.inner.erase(user, day)
        await self._queue.drain()
        await self._mirror.erase(user, day)
        return erased

    async def forget(self, user: str) -> int:
        count = await self.inner.forget(user)
        await self._queue.drain()
        await self._mirror.forget(user)
        return count

    async def _repeat(self, events: Sequence[UsageEvent], timelines: Collection[str]) -> None:
        for _ in range(_ATTEMPTS):
            events = await self._mirror.put(events, timelines=timelines)
            if not events:
                return
        raise StoreThrottled(f"{len(events)} events were not taken")


class _MirroredDirectory(DelegatingDirectoryStore):
    def __init__(self, primary: DirectoryStore, mirror: DirectoryStore, queue: MirrorQueue) -> None:
        super().__init__(primary)
        self._mirror = mirror
        self._queue = queue

    async def replace(self, old: Entry | None, new: Entry | None, *, now: int) -> bool:
        """The second store's version of an entry is its own.

        What is removed goes from the second store first: where that fails, it is still here, to be removed again.
        """
        entry = check_pair(old, new)
        name = (type(entry), name_of(entry))
        if new is None:
            await self._queue.finish(name, lambda: self._repeat(entry, None, now))
        done = await self.inner.replace(old, new, now=now)
        if done and new is not None:
            self._queue.follow(name, lambda: self._repeat(entry, new, now))
        elif not done and new is None:
            self._queue.follow(name, lambda: self._bring_back(entry, now))
        return done

    async def _bring_back(self, entry: Entry, now: int) -> None:
        """Somebody has changed it meanwhile, and so it stays."""
        kept = await self.inner.read(type(entry), name_of(entry))
        await self._repeat(entry, kept, now)

    async def _repeat(self, entry: Entry, new: Entry | None, now: int) -> None:
        for _ in range(_ATTEMPTS):
            there = await self._mirror.read(type(entry), name_of(entry))
            if there == new or await self._mirror.replace(there, new, now=now):
                return
        raise StoreThrottled(f"{name_of(entry)!r} kept changing")
