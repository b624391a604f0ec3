"""`HomeStore`: every user is counted in one region, their home, and whoever is elsewhere asks there.

So nothing is ever written in two regions, and a quota holds exactly. A check crosses to another region once, where a
policy takes a `lease` once for all of its units. What is only read, or only added, stays here: usage events, and users
and plans, which DynamoDB brings to the other replicas within a second or so.
"""

from __future__ import annotations

import logging
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Final, TypeVar

from ratelimit.breaker import BreakerState
from ratelimit.cache import LRUCache
from ratelimit.clock import Clock, SystemClock
from ratelimit.errors import StoreMisconfigured, StoreThrottled, StoreUnavailable
from ratelimit.names import Key
from ratelimit.regions.regions import home_of
from ratelimit.store.base import Outcome, Record, TableStore, Trace, Write
from ratelimit.store.delegating import DelegatingDirectoryStore, DelegatingStore
from ratelimit.store.directory import DirectoryStore, Entry, check_pair, name_of

logger = logging.getLogger("ratelimit")

A = TypeVar("A")
T = TypeVar("T", bound=Entry)

MAX_CHANGED_ENTRIES: Final = 1_000
MAX_FAILURES: Final = 3
"""In a row, of one region: fewer than it takes for the limiter to leave all of the store alone."""


class HomeStore(DelegatingStore):
    """A store on one of each region, which it opens and closes; `here` is the one of this process."""

    def __init__(self, stores: Mapping[str, TableStore], here: str, *, clock: Clock | None = None) -> None:
        super().__init__(stores[here])
        self.here = here
        self.stores = stores
        self._clock = clock or SystemClock()
        self._breakers = {region: BreakerState(failures=MAX_FAILURES) for region in stores if region != here}
        self.asked = dict.fromkeys(stores, 0)
        """How often each region was asked about counters; all but that of this process are crossings."""
        self._regions = tuple(stores)
        self.directory = _HomeDirectory(self.inner.directory, stores[self._regions[0]].directory)

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
                logger.warning("who is counted in %s meets on_unavailable for now: %s", region, error)

    async def close(self) -> None:
        for store in self.stores.values():
            await store.close()

    async def apply(self, key: Key, write: Write, *, now: int) -> Outcome:
        return await self._ask(key.user, lambda home: home.apply(key, write, now=now))

    async def apply_all(self, writes: Sequence[tuple[Key, Write]], *, now: int) -> Sequence[Outcome]:
        """All or none needs one home for all of them."""
        homes = {home_of(key.user, self._regions) for key, _ in writes}
        if len(homes) > 1:
            raise StoreMisconfigured(
                f"policies that are decided together are counted in {' and '.join(sorted(homes))}, and nothing is "
                "written all or none over two regions: give them one user_from"
            )
        return await self._ask(writes[0][0].user, lambda home: home.apply_all(writes, now=now))

    async def read(self, key: Key) -> Record:
        return await self._ask(key.user, lambda home: home.read(key))

    async def read_all(self, keys: Sequence[Key]) -> Sequence[Record]:
        by_home: dict[str, list[Key]] = {}
        for key in keys:
            by_home.setdefault(home_of(key.user, self._regions), []).append(key)
        found: dict[Key, Record] = {}
        for asked in by_home.values():
            records = await self._ask(asked[0].user, partial(_read_all, asked))
            found.update(zip(asked, records, strict=True))
        return [found[key] for key in keys]

    async def delete(self, key: Key) -> None:
        await self._ask(key.user, lambda home: home.delete(key))

    async def erase(self, users: Collection[str]) -> Mapping[Trace, int]:
        """In every region, as what was written in one a moment ago is not in the others yet; what all had counts once.

        Raises `StoreUnavailable` where one is out of reach: repeat it then.
        """
        erased: dict[Trace, int] = {}
        for store in self.stores.values():
            for trace, count in (await store.erase(users)).items():
                erased[trace] = max(count, erased.get(trace, 0))
        return erased

    async def _ask(self, user: str, question: Callable[[TableStore], Awaitable[A]]) -> A:
        """Ask the user's home. One that keeps failing is left alone for a while, without the limiter doing so as well,
        which would shut out who is counted elsewhere: it is told that nothing was written."""
        region = home_of(user, self._regions)
        self.asked[region] += 1
        breaker = self._breakers.get(region)
        if breaker is None:
            return await question(self.inner)
        if not breaker.admits(self._clock.now()):
            raise StoreThrottled(
                f"{region}, where this user is counted, has failed repeatedly; it is left alone a while"
            )
        try:
            answer = await question(self.stores[region])
        except StoreThrottled:
            breaker.succeeded()
            raise
        except (StoreUnavailable, CancelledError):  # cancelled: the deadline was over
            if breaker.failed(self._clock.now()):
                logger.warning("%s keeps failing: who is counted there meets on_unavailable", region)
            raise
        except BaseException:
            breaker.abandoned()
            raise
        if breaker.failed_calls and breaker.succeeded():
            logger.warning("%s answers again", region)
        return answer


def _read_all(keys: Sequence[Key], home: TableStore) -> Awaitable[Sequence[Record]]:
    return home.read_all(keys)


class _HomeDirectory(DelegatingDirectoryStore):
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
