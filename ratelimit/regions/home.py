"""`HomeStore`: every user is counted in one region, their home, and whoever is elsewhere asks there.

So nothing is ever written in two regions, and a quota holds exactly. A check crosses to another region once, where a
policy takes a `lease` once for all of its units.
"""

from __future__ import annotations

import logging
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final, TypeVar

from ratelimit.blocking import loop_time, timeout
from ratelimit.breaker import BreakerState
from ratelimit.clock import Clock, SystemClock
from ratelimit.errors import StoreMisconfigured, StoreThrottled, StoreUnavailable
from ratelimit.names import Key
from ratelimit.regions.failover import SLACK_S, Homes
from ratelimit.regions.regions import home_of
from ratelimit.regions.stores import RegionsStore
from ratelimit.store.base import Outcome, Record, TableStore, Write

logger = logging.getLogger("ratelimit")

A = TypeVar("A")

MAX_FAILURES: Final = 3
"""In a row, of one region: fewer than it takes for the limiter to leave all of the store alone."""


class HomeStore(RegionsStore):
    """A store that counts each user in one region."""

    def __init__(
        self,
        stores: Mapping[str, TableStore],
        here: str,
        *,
        failover: bool = False,
        clock: Clock | None = None,
        time: Callable[[], float] = loop_time,
    ) -> None:
        super().__init__(stores, here)
        self._clock = clock or SystemClock()
        self.homes = Homes(stores, self._clock, time) if failover else None
        """Where users are at home, if they may be moved from a region that is lost."""
        self._breakers = {region: BreakerState(failures=MAX_FAILURES) for region in stores if region != here}
        self.asked = dict.fromkeys(stores, 0)
        """How often each region was asked about counters; all but that of this process are crossings."""

    async def open(self) -> None:
        await super().open()
        if self.homes is not None:
            await self.homes.ask()

    async def close(self) -> None:
        if self.homes is not None:
            await self.homes.close()
        await super().close()

    async def apply(self, key: Key, write: Write, *, now: int) -> Outcome:
        return await self._ask(key.user, lambda home: home.apply(key, write, now=now))

    async def apply_all(self, writes: Sequence[tuple[Key, Write]], *, now: int) -> Sequence[Outcome]:
        """All or none needs one home for all of them."""
        homes = {await self._home(key.user) for key, _ in writes}
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
            by_home.setdefault(await self._home(key.user), []).append(key)
        found: dict[Key, Record] = {}
        for asked in by_home.values():
            records = await self._ask(asked[0].user, partial(_read_all, asked))
            found.update(zip(asked, records, strict=True))
        return [found[key] for key in keys]

    async def delete(self, key: Key) -> None:
        await self._ask(key.user, lambda home: home.delete(key))

    async def _ask(self, user: str, question: Callable[[TableStore], Awaitable[A]]) -> A:
        """Ask the user's home. One that keeps failing is left alone for a while, without the limiter doing so as well,
        which would shut out who is counted elsewhere: it is told that nothing was written."""
        region = await self._home(user)
        self.asked[region] += 1
        breaker = self._breakers.get(region)
        if breaker is None:
            return await self._in_time(question(self.inner))
        if not breaker.admits(self._clock.now()):
            raise StoreThrottled(
                f"{region}, where this user is counted, has failed repeatedly; it is left alone a while"
            )
        try:
            answer = await self._in_time(question(self.stores[region]))
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

    async def _home(self, user: str) -> str:
        return home_of(user, self._regions) if self.homes is None else await self.homes.of(user)

    async def _in_time(self, answer: Awaitable[A]) -> A:
        """Return the answer, not later than a region may count for the user that was the home when it was asked."""
        if self.homes is None:
            return await answer
        try:
            async with timeout(SLACK_S):
                return await answer
        except TimeoutError:
            raise StoreUnavailable("no answer for so long that the user may have been moved meanwhile") from None


def _read_all(keys: Sequence[Key], home: TableStore) -> Awaitable[Sequence[Record]]:
    return home.read_all(keys)
