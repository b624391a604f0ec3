"""Stores that tell on their caller, or fail on request."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from copy import copy

from ratelimit.names import Key
from ratelimit.store import MemoryStore, Outcome, Record, Write


class CountingStore:
    """A memory store that counts what is asked of it. Not the embedded store itself, so the limiter guards it."""

    def __init__(self, memory: MemoryStore | None = None) -> None:
        self.memory = MemoryStore() if memory is None else memory
        self.events = self.memory.events
        self.closed = False
        self.calls: Counter[str] = Counter()
        self.writes: list[Write] = []

    def taken(self) -> dict[str, int]:
        """The calls since last asked."""
        calls, self.calls = dict(self.calls), Counter()
        return calls

    async def open(self) -> None: ...

    async def close(self) -> None:
        self.closed = True

    async def apply(self, key: Key, write: Write, *, now: int) -> Outcome:
        self.calls["apply"] += 1
        self.writes.append(write)
        return await self.memory.apply(key, write, now=now)

    async def apply_all(self, writes: Sequence[tuple[Key, Write]], *, now: int) -> Sequence[Outcome]:
        self.calls["apply_all"] += 1
        return await self.memory.apply_all(writes, now=now)

    async def read(self, key: Key) -> Record:
        self.calls["read"] += 1
        return await self.memory.read(key)

    async def read_all(self, keys: Sequence[Key]) -> Sequence[Record]:
        self.calls["read_all"] += 1
        return [await self.memory.read(key) for key in keys]

    async def delete(self, key: Key) -> None:
        await self.memory.delete(key)

    async def used_today(self) -> dict[Key, int]:
        """What each user has used today, by the totals."""
        found = self.memory.records.items()
        return {key: next((record[f] for f in record if f[0] == "u" and len(f) == 7), 0) for key, record in found}


class FailingStore(CountingStore):
    """A memory store whose every call first does `fault`: raise, or hang."""

    fault: Callable[[], Awaitable[None]] | None = None

    async def apply(self, key: Key, write: Write, *, now: int) -> Outcome:
        self.calls["apply"] += 1
        self.writes.append(write)
        if self.fault is not None:
            await self.fault()
        return await self.memory.apply(key, write, now=now)

    async def apply_all(self, writes: Sequence[tuple[Key, Write]], *, now: int) -> Sequence[Outcome]:
        self.calls["apply_all"] += 1
        if self.fault is not None:
            await self.fault()
        return await self.memory.apply_all(writes, now=now)

    async def read(self, key: Key) -> Record:
        self.calls["read"] += 1
        if self.fault is not None:
            await self.fault()
        return await self.memory.read(key)


class YieldingStore(FailingStore):
    """A memory store that others get ahead of: each call lets them run first."""

    async def fault(self) -> None:
        await asyncio.sleep(0)


async def hang() -> None:
    """Never answers; only a deadline ends it."""
    await asyncio.Event().wait()


def failing(error: Exception) -> Callable[[], Awaitable[None]]:
    """Answers with this error, each time with a copy: what was raised holds on to the limiter that it went through."""

    async def fault() -> None:
        raise copy(error)

    return fault
