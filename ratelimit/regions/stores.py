"""`RegionsStore`: a store on one of each region. What counts in which of them is for its two kinds to say.

What is only read, or only added, stays here: usage events, and users and plans, which DynamoDB brings to the other
replicas within a second or so.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Final, TypeVar

from ratelimit.cache import LRUCache
from ratelimit.errors import StoreMisconfigured, StoreUnavailable
from ratelimit.store.base import TableStore, Trace
from ratelimit.store.delegating import DelegatingDirectoryStore, DelegatingStore
from ratelimit.store.directory import DirectoryStore, Entry, check_pair, name_of

logger = logging.getLogger("ratelimit")

T = TypeVar("T", bound=Entry)

MAX_CHANGED_ENTRIES: Final = 1_000


class RegionsStore(DelegatingStore):
    """It opens and closes the store of every region; `here` is the one of this process."""

    def __init__(self, stores: Mapping[str, TableStore], here: str) -> None:
        super().__init__(stores[here])
        self.here = here
        self.stores = stores
        self._regions = tuple(stores)
        self.directory = _Directory(self.inner.directory, stores[self._regions[0]].directory)

    async def open(self) -> None:
        """Open all. One that is out of reach keeps nobody waiting for ever: it opens itself when it is asked."""
        await self.inner.open()
        for region, store in self.stores.items():
            if region == self.here:
                continue
            try:
                await store.open()
            except StoreMisconfigured:
                raise
            except StoreUnavailable as error:
                logger.warning("the replica in %s is out of reach for now: %s", region, error)

    async def close(self) -> None:
        for store in self.stores.values():
            await store.close()

    async def erase(self, users: Collection[str]) -> Mapping[Trace, int]:
        """In every region, as what was written in one a moment ago is not in the others yet; what all had counts once.

        Raises `StoreUnavailable` where one is out of reach: repeat it then.
        """
        erased: dict[Trace, int] = {}
        for store in self.stores.values():
            for trace, count in (await store.erase(users)).items():
                erased[trace] = max(count, erased.get(trace, 0))
        return erased


class _Directory(DelegatingDirectoryStore):
    """Users and plans are read here, and changed in the first region, so that no change and no identity is lost to
    another. What this process has changed it reads there, as it may not have come back yet."""

    def __init__(self, here: DirectoryStore, first: DirectoryStore) -> None:
        super().__init__(here)
        self._first = first
        self._changed: LRUCache[tuple[type[object], str], bool] = LRUCache(MAX_CHANGED_ENTRIES)

    async def read(self, kind: type[T], name: str) -> T | None:
        store = self.inner if self._changed.get((kind, name)) is None else self._first
        return await store.read(kind, name)

    async def replace(self, old: Entry | None, new: Entry | None, *, now: int) -> bool:
        entry = check_pair(old, new)
        self._changed.put((type(entry), name_of(entry)), True)
        return await self._first.replace(old, new, now=now)
