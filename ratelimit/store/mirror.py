"""`MirrorStore`: decide by one store, write to two. To change stores is then a setting, and so is the way back.

What the first store has applied is written to the second one as well, out of the request's way, and without its
conditions: the decision has been made. A counter is added to, so that several processes may mirror into one record; a
bucket, which is one absolute number, is put. What fails there is counted, and never felt here. Only what is deleted is
deleted in both before the answer, and fails aloud: whoever asks for it relies on it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from datetime import date
from typing import Final, TypeVar

from ratelimit.errors import StoreThrottled
from ratelimit.event import UsageEvent
from ratelimit.names import Key
from ratelimit.store.base import TableStore, Trace
from ratelimit.store.directory.base import DirectoryStore, Entry, Page, check_pair, name_of
from ratelimit.store.directory.identity import Identity
from ratelimit.store.events import EventStore, Position
from ratelimit.store.follower import Difference, Follower, MirrorStats
from ratelimit.store.scans import Scans
from ratelimit.store.write import Add, Drop, Expect, Op, Outcome, Put, Record, Write

T = TypeVar("T", bound=Entry)

_KEPT: Final = 256
_ATTEMPTS: Final = 5


class MirrorStore:
    """A `TableStore` that answers as `primary` does, and keeps `mirror` up to date. It opens and closes both."""

    def __init__(self, primary: TableStore, mirror: TableStore, *, follower: Follower | None = None) -> None:
        self.primary = primary
        self.mirror = mirror
        self.events: EventStore = _Events(self, follower := follower or Follower())
        self.directory: DirectoryStore = _Directory(self, follower)
        self._follower = follower
        self._unconditional: dict[Write, Write] = {}

    @property
    def scans(self) -> Scans:
        """See `TableStore.scans`: the first store's."""
        return self.primary.scans

    @property
    def stats(self) -> MirrorStats:
        """How the mirror keeps up."""
        return self._follower.stats

    async def open(self) -> None:
        """See `Store.open`. A mirror that cannot be opened keeps nobody waiting."""
        await self.primary.open()
        self._follower.follow(None, self.mirror.open)

    async def close(self) -> None:
        """See `Store.close`. Waits for what is still to be mirrored, some seconds at most."""
        await self._follower.stop()
        try:
            await self.mirror.close()
        finally:
            await self.primary.close()

    async def apply(self, key: Key, write: Write, *, now: int) -> Outcome:
        """See `Store.apply`."""
        outcome = await self.primary.apply(key, write, now=now)
        if outcome.applied:
            self._follower.follow(key, lambda: self._repeat(key, write, outcome.record, now))
        return outcome

    async def read(self, key: Key) -> Record:
        """See `Store.read`: the first store's."""
        return await self.primary.read(key)

    async def delete(self, key: Key) -> None:
        """See `Store.delete`. In both, before it returns."""
        await self.primary.delete(key)
        await self._follower.finish(key, lambda: self.mirror.delete(key))

    async def erase(self, users: Collection[str]) -> Mapping[Trace, int]:
        """See `TableStore.erase`. In both, before it returns; what both had counts once."""
        erased = await self.primary.erase(users)
        await self.settle()
        mirrored = await self.mirror.erase(users)
        return {trace: max(erased.get(trace, 0), mirrored.get(trace, 0)) for trace in {**erased, **mirrored}}

    async def settle(self) -> None:
        """Returns when the mirror has, or has refused, all that was written before."""
        await self._follower.drain()

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

    def __init__(self, both: MirrorStore, follower: Follower) -> None:
        self._both = both
        self._follower = follower

    async def put(self, events: Sequence[UsageEvent]) -> Sequence[UsageEvent]:
        """See `EventStore.put`. The second store gets what the first one took."""
        left = await self._both.primary.events.put(events)
        waiting = {id(event) for event in left}
        taken = [event for event in events if id(event) not in waiting]
        if taken:
            self._follower.follow(taken[0].user, lambda: self._repeat(taken))
        return left

    async def page(
        self, user: str, day: date, *, since: int, until: int, limit: int, after: Position | None = None
    ) -> Sequence[UsageEvent]:
        """See `EventStore.page`: the first store's."""
        return await self._both.primary.events.page(user, day, since=since, until=until, limit=limit, after=after)

    async def actions(self, user: str, day: date) -> Set[str]:
        """See `EventStore.actions`. Those of both, as both are erased."""
        ours = await self._both.primary.events.actions(user, day)
        await self._follower.drain()
        return ours | await self._both.mirror.events.actions(user, day)

    async def erase(self, user: str, day: date) -> int:
        """See `EventStore.erase`. In both, before it returns."""
        erased = await self._both.primary.events.erase(user, day)
        await self._follower.drain()
        await self._both.mirror.events.erase(user, day)
        return erased

    async def forget(self, user: str) -> int:
        """See `EventStore.forget`. In both, before it returns."""
        count = await self._both.primary.events.forget(user)
        await self._follower.drain()
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

    def __init__(self, both: MirrorStore, follower: Follower) -> None:
        self._both = both
        self._follower = follower

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
            await self._follower.finish(name, lambda: self._repeat(entry, None, now))
        done = await self._both.primary.directory.replace(old, new, now=now)
        if done and new is not None:
            self._follower.follow(name, lambda: self._repeat(entry, new, now))
        elif not done and new is None:
            self._follower.follow(name, lambda: self._bring_back(entry, now))
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
