"""Directory stores that tell on their caller, or fail on request."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ratelimit.store.directory import Entry, Identity
from ratelimit.store.memory import MemoryDirectoryStore

T = TypeVar("T", bound=Entry)


class CountingDirectoryStore(MemoryDirectoryStore):
    """A memory store that counts reads; each first does `fault`: raise, hang, or wait for a word."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()
        self.fault: Callable[[], Awaitable[None]] | None = None

    def taken(self) -> dict[str, int]:
        """The reads since last asked."""
        reads, self.reads = dict(self.reads), Counter()
        return reads

    async def read(self, kind: type[T], name: str) -> T | None:
        self.reads[kind.__name__] += 1
        if self.fault is not None:
            await self.fault()
        return await super().read(kind, name)

    async def find(self, identity: Identity) -> str | None:
        self.reads["Identity"] += 1
        if self.fault is not None:
            await self.fault()
        return await super().find(identity)


class Gate:
    """A fault: holds whoever comes until `open`."""

    def __init__(self) -> None:
        self._opened = asyncio.Event()

    async def __call__(self) -> None:
        await self._opened.wait()

    def open(self) -> None:
        self._opened.set()


async def hang() -> None:
    """Never answers; only a deadline ends it."""
    await asyncio.Event().wait()


def failing(error: Exception) -> Callable[[], Awaitable[None]]:
    """Answers with this error."""

    async def fault() -> None:
        raise error

    return fault


async def fill(store: MemoryDirectoryStore, *entries: Entry) -> None:
    """Put them there, where there is nothing yet."""
    for entry in entries:
        assert await store.replace(None, entry, now=1)
