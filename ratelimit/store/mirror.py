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
from typing import Final, NamedTuple, TypeAlias, TypeVar

from ratelimit.errors import InvalidInput, RateLimitError, StoreThrottled, StoreUnavailable
from ratelimit.event import UsageEvent
from ratelimit.names import Key
from ratelimit.store.base import TableStore, Trace
from ratelimit.store.directory import DirectoryStore, Entry, Identity, Page, check_pair, name_of
from ratelimit.store.events import EventStore, Position
from ratelimit.store.scans import Scans
from ratelimit.store.write import Add, Drop, Expect, Op, Outcome, Put, Record, Write

logger = logging.getLogger("ratelimit")


# `MirrorQueue`: work that follows an answer: in order for each name, bounded, and felt by nobody who does not ask.

MAX_WAITING: Final = 10_000
_LANES: Final = 16
# Far beyond any answer: it only keeps a lane from waiting for ever.
_DEADLINE: Final = 5.0
_GRACE: Final = 10.0
_MOST_SHOWN: Final = 100
_PER_LINE: Final = 1000

Work: TypeAlias = Callable[[], Awaitable[object]]
Failure: TypeAlias = Exception | None


class Difference(NamedTuple):
    """A field that the mirror left at another value than the store that decides."""

    key: Key
    field: str
    decided: int
    mirrored: int | None
    """None where the mirror would not take the write at all."""


@dataclass(slots=True)
class MirrorStats:
    """How a mirror keeps up. Each bound that may be hit has a counter that shows it was."""

    written: int = 0
    failed: int = 0
    """Writes that the mirror did not take: it is behind by them."""
    dropped: int = 0
    """Writes that were not even tried, because `MAX_WAITING` others waited, or time was up at the end."""
    different: int = 0
    """Writes after which a field stood elsewhere than in the store that decides. With several processes, two that write
    the same record at the same moment may show here and be equal a moment later: `MirrorStore.compare` tells."""
    waiting: int = 0
    differences: deque[Difference] = field(default_factory=lambda: deque(maxlen=_MOST_SHOWN))
    """The last ones."""


class _Turn(NamedTuple):
    """A place in a lane."""

    work: Work
    over: asyncio.Future[Failure]


class MirrorQueue:
    """Belongs to one event loop. What has the same name is done one after the other, in the order in which it came."""

    def __init__(self, *, max_waiting: int = MAX_WAITING, deadline: float = _DEADLINE, grace: float = _GRACE) -> None:
        if max_waiting < 1:
            raise InvalidInput(f"max_waiting must be at least 1, not {max_waiting!r}")
        self.stats = MirrorStats()
        self._max_waiting = max_waiting
        self._deadline = deadline
        self._grace = grace
        self._lanes: list[deque[_Turn]] = [deque() for _ in range(_LANES)]
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def follow(self, name: Hashable, work: Work) -> None:
        """Have it done, later; or never, where too much waits already."""
        self._line_up(name, work)

    async def finish(self, name: Hashable, work: Work) -> None:
        """Have it done, in its turn, and return when it is. Raises what went wrong, as `StoreUnavailable`."""
        turn = self._line_up(name, work)
        if turn is None:
            raise StoreThrottled("the mirror does not keep up: too much waits for it; try again later")
        await asyncio.wait([turn.over])
        if error := turn.over.result():
            raise error

    async def drain(self) -> None:
        """Returns when all that was to be done by now is done; what comes meanwhile is not waited for."""
        if last := [lane[-1].over for lane in self._lanes if lane]:
            await asyncio.wait(last)

    async def stop(self) -> None:
        """As `drain`, but for `grace` seconds at most; what is left then is counted as dropped."""
        try:
            async with asyncio.timeout(self._grace):
                while self._tasks:
                    await asyncio.wait(list(self._tasks.values()))
        except TimeoutError:
            left, tasks = self.stats.waiting, list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for lane in self._lanes:
                for turn in lane:
                    turn.over.set_result(StoreUnavailable("the mirror was closed"))
                lane.clear()
            self._tasks.clear()
            self.stats.waiting = 0
            self._drop(left)

    def _line_up(self, name: Hashable, work: Work) -> _Turn | None:
        """None where too much waits already."""
        if self.stats.waiting >= self._max_waiting:
            self._drop(1)
            return None
        loop, lane = asyncio.get_running_loop(), hash(name) % _LANES
        turn = _Turn(work, loop.create_future())
        self.stats.waiting += 1
        self._lanes[lane].append(turn)
        if lane not in self._tasks:
            self._tasks[lane] = loop.create_task(self._carry(lane))
        return turn

    async def _carry(self, lane: int) -> None:
        turns = self._lanes[lane]
        try:
            while turns:
                failure = await self._do(turns[0].work)
                turns.popleft().over.set_result(failure)
                self.stats.waiting -= 1
        finally:
            self._tasks.pop(lane, None)

    async def _do(self, work: Work) -> Failure:
        try:
            async with asyncio.timeout(self._deadline):
                await work()
        except (RateLimitError, TimeoutError) as error:
            self.stats.failed += 1
            if self.stats.failed % _PER_LINE == 1:
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
        if self.stats.dropped % _PER_LINE + count >= _PER_LINE or not self.stats.dropped:
            logger.warning("the mirror does not keep up: %d writes were dropped so far", self.stats.dropped + count)
        self.stats.dropped += count


T = TypeVar("T", bound=Entry)

_KEPT: Final = 256
_ATTEMPTS: Final = 5


class MirrorStore:
    """A `TableStore` that answers as `primary` does, and keeps `mirror` up to date. It opens and closes both."""

    def __init__(self, primary: TableStore, mirror: TableStore, *, queue: MirrorQueue | None = None) -> None:
        self.primary = primary
        self.mirror = mirror
        self.events: EventStore = _Events(self, queue := queue or MirrorQueue())
        self.directory: DirectoryStore = _Directory(self, queue)
        self._queue = queue
        self._unconditional: dict[Write, Write] = {}

    @property
    def scans(self) -> Scans:
        """See `TableStore.scans`: the first store's."""
        return self.primary.scans

    @property
    def stats(self) -> MirrorStats:
        """How the mirror keeps up."""
        return self._queue.stats

    async def open(self) -> None:
        """See `Store.open`. A mirror that cannot be opened keeps nobody waiting."""
        await self.primary.open()
        self._queue.follow(None, self.mirror.open)

    async def close(self) -> None:
        """See `Store.close`. Waits for what is still to be mirrored, some seconds at most."""
        await self._queue.stop()
        try:
            await self.mirror.close()
        finally:
            await self.primary.close()

    async def apply(self, key: Key, write: Write, *, now: int) -> Outcome:
        """See `Store.apply`."""
        outcome = await self.primary.apply(key, write, now=now)
        if outcome.applied:
            self._queue.follow(key, lambda: self._repeat(key, write, outcome.record, now))
        return outcome

    async def read(self, key: Key) -> Record:
        """See `Store.read`: the first store's."""
        return await self.primary.read(key)

    async def delete(self, key: Key) -> None:
        """See `Store.delete`. In both, before it returns."""
        await self.primary.delete(key)
        await self._queue.finish(key, lambda: self.mirror.delete(key))

    async def erase(self, users: Collection[str]) -> Mapping[Trace, int]:
        """See `TableStore.erase`. In both, before it returns; what both had counts once."""
        erased = await self.primary.erase(users)
        await self.settle()
        mirrored = await self.mirror.erase(users)
        return {trace: max(erased.get(trace, 0), mirrored.get(trace, 0)) for trace in {**erased, **mirrored}}

    async def settle(self) -> None:
        """Returns when the mirror has, or has refused, all that was written before."""
        await self._queue.drain()

    async def compare(self, key: Key) -> Sequence[Difference]:
        """The fields of a record that are not the same in both. Raises `StoreUnavailable`, the mirror's too."""
        await self.settle()
        ours, theirs = await self.primary.read(key), await self.mirror.read(key)
        return [
            Difference(key, field, ours.get(field, 0), theirs.get(field))
            for field in sorted(set(ours) | set(theirs))
            if ours.get(field) != theirs.get(field)
        ]

    async def _repeat(self, key: Key, write: Write, record: Record, now: int) -> None:
        outcome = await self.mirror.apply(key, self._without_conditions(write, record), now=now)
        found = [
            Difference(key, op.field, record[op.field], outcome.record.get(op.field) if outcome.applied else None)
            for op in write.ops
            if type(op) in (Add, Put)
            and op.field in record
            and (not outcome.applied or outcome.record.get(op.field) != record[op.field])
        ]
        if found:
            self.stats.different += 1
            self.stats.differences.extend(found)

    def _without_conditions(self, write: Write, record: Record) -> Write:
        """The same object for the same write, where no outcome is in it: a store keeps what it prepared."""
        kept = self._unconditional.get(write)
        if kept is not None:
            return kept
        expected = {op.field: op for op in write.ops if type(op) is Expect}
        absolute = [op.field for op in write.ops if type(op) in (Add, Put) and _is_absolute(op, expected)]
        ops: list[Op] = []
        for op in write.ops:
            if op.field in absolute:
                if type(op) is not Expect:
                    ops.append(Put(op.field, record[op.field]))
            else:
                ops += _repeated(op, expected)
        plain = Write(tuple(ops), write.expires_at)
        if not absolute:
            if len(self._unconditional) >= _KEPT:
                self._unconditional.clear()
            self._unconditional[write] = plain
        return plain


def _is_absolute(op: Op, expected: Mapping[str, Expect]) -> bool:
    """A number that was planned from its own value (a bucket's), and not one that is only added to or given back."""
    condition = expected.get(op.field)
    return condition is not None and not _is_give_back(op, condition)


def _is_give_back(op: Op, condition: Expect) -> bool:
    return type(op) is Add and op.amount < 0 and condition.low == -op.amount


def _repeated(op: Op, expected: Mapping[str, Expect]) -> tuple[Op, ...]:
    if type(op) is Add:
        condition = expected.get(op.field)
        # A counter never falls below zero, not even where the mirror began later.
        return (Add(op.field, op.amount),) if condition is None else (condition, Add(op.field, op.amount))
    return (op,) if type(op) in (Put, Drop) else ()


class _Events:
    """The events of both."""

    def __init__(self, both: MirrorStore, queue: MirrorQueue) -> None:
        self._both = both
        self._queue = queue

    async def put(self, events: Sequence[UsageEvent]) -> Sequence[UsageEvent]:
        """See `EventStore.put`. The second store gets what the first one took."""
        left = await self._both.primary.events.put(events)
        waiting = {id(event) for event in left}
        taken = [event for event in events if id(event) not in waiting]
        if taken:
            self._queue.follow(taken[0].user, lambda: self._repeat(taken))
        return left

    async def page(
        self, user: str, day: date, *, since: int, until: int, limit: int, after: Position | None = None
    ) -> Sequence[UsageEvent]:
        """See `EventStore.page`: the first store's."""
        return await self._both.primary.events.page(user, day, since=since, until=until, limit=limit, after=after)

    async def actions(self, user: str, day: date) -> Set[str]:
        """See `EventStore.actions`. Those of both, as both are erased."""
        ours = await self._both.primary.events.actions(user, day)
        await self._queue.drain()
        return ours | await self._both.mirror.events.actions(user, day)

    async def erase(self, user: str, day: date) -> int:
        """See `EventStore.erase`. In both, before it returns."""
        erased = await self._both.primary.events.erase(user, day)
        await self._queue.drain()
        await self._both.mirror.events.erase(user, day)
        return erased

    async def forget(self, user: str) -> int:
        """See `EventStore.forget`. In both, before it returns."""
        count = await self._both.primary.events.forget(user)
        await self._queue.drain()
        await self._both.mirror.events.forget(user)
        return count

    async def _repeat(self, events: Sequence[UsageEvent]) -> None:
        for _ in range(_ATTEMPTS):
            events = await self._both.mirror.events.put(events)
            if not events:
                return
        raise StoreThrottled(f"{len(events)} events were not taken")


class _Directory:
    """The users and plans of both."""

    def __init__(self, both: MirrorStore, queue: MirrorQueue) -> None:
        self._both = both
        self._queue = queue

    async def read(self, kind: type[T], name: str) -> T | None:
        """See `DirectoryStore.read`: the first store's."""
        return await self._both.primary.directory.read(kind, name)

    async def find(self, identity: Identity) -> str | None:
        """See `DirectoryStore.find`: the first store's."""
        return await self._both.primary.directory.find(identity)

    async def page(
        self, kind: type[T], *, plan: str | None = None, limit: int = 100, cursor: str | None = None
    ) -> Page[T]:
        """See `DirectoryStore.page`: the first store's."""
        return await self._both.primary.directory.page(kind, plan=plan, limit=limit, cursor=cursor)

    async def replace(self, old: Entry | None, new: Entry | None, *, now: int) -> bool:
        """See `DirectoryStore.replace`. The second store's version of it is its own.

        What is removed goes from the second store first: where that fails, it is still here, to be removed again.
        """
        entry = check_pair(old, new)
        name = (type(entry), name_of(entry))
        if new is None:
            await self._queue.finish(name, lambda: self._repeat(entry, None, now))
        done = await self._both.primary.directory.replace(old, new, now=now)
        if done and new is not None:
            self._queue.follow(name, lambda: self._repeat(entry, new, now))
        elif not done and new is None:
            self._queue.follow(name, lambda: self._bring_back(entry, now))
        return done

    async def _bring_back(self, entry: Entry, now: int) -> None:
        """Somebody has changed it meanwhile, and so it stays."""
        kept = await self._both.primary.directory.read(type(entry), name_of(entry))
        await self._repeat(entry, kept, now)

    async def _repeat(self, entry: Entry, new: Entry | None, now: int) -> None:
        directory = self._both.mirror.directory
        for _ in range(_ATTEMPTS):
            there = await directory.read(type(entry), name_of(entry))
            if there == new or await directory.replace(there, new, now=now):
                return
        raise StoreThrottled(f"{name_of(entry)!r} kept changing")
