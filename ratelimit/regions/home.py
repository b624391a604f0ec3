"""`HomeStore`: every user is counted in one region, their home, and whoever is elsewhere asks there.

So nothing is ever written in two regions, and a quota holds exactly. A check crosses to another region once, where a
policy takes a `lease` once for all of its units.

`Homes` says which region counts whom, where an operator may move the users of a region that is lost to the others. Each
region's replica has an item of its own that says which regions are away, with a number that only grows: of one epoch
most regions have been told one thing. Whoever counts asks them, and counts for `LEASE_S` from then on. By another epoch
than before it counts when nobody can count by the old one any more, so that no user is ever counted in two regions.
Only time that passes is compared, not clocks.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple, TypeVar

from ratelimit.blocking import loop_time, timeout
from ratelimit.breaker import BreakerState
from ratelimit.clock import SECOND, Clock, SystemClock
from ratelimit.errors import ConfigError, StoreMisconfigured, StoreThrottled, StoreUnavailable
from ratelimit.names import Key
from ratelimit.regions.regions import home_of, not_in_list
from ratelimit.regions.stores import RegionsStore
from ratelimit.store.base import Expect, Outcome, Put, Record, TableStore, Write
from ratelimit.tasks import Tasks

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
        except (StoreUnavailable, asyncio.CancelledError):  # cancelled: the deadline was over
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


LEASE_S: Final = 10.0
RENEW_S: Final = 2.0
"""A lease is renewed behind the answers when it is as old as this."""
SLACK_S: Final = 5.0
"""How much longer than a lease a new epoch waits: for what is under way, and for replicas to be level."""
MOVES_IN_S: Final = RENEW_S + LEASE_S + SLACK_S
"""After how long, at most, a process that is asked all the while counts whom has been moved."""
REQUEST_TIMEOUT_S: Final = 2.0
MAX_SKEW_S: Final = 60.0
"""By which the clock of an operator may be wrong, for a process that starts later than that after a move."""
_EPOCH: Final = "epoch"
_AT: Final = "at"
_FOR_EVER: Final = 2**40


class Epoch(NamedTuple):
    """What a region was told last: which regions count nobody, and when that was (seconds since 1970)."""

    number: int
    at: int
    away: frozenset[str]


class Homes:
    """Which region counts a user, for as long as this process may rely on it."""

    def __init__(self, stores: Mapping[str, TableStore], clock: Clock, time: Callable[[], float]) -> None:
        self._stores = stores
        self._regions = tuple(stores)
        self._clock, self._time = clock, time
        self._most = len(stores) // 2 + 1
        self._counts_by = self._told = Epoch(0, 0, frozenset())
        self._counts_from = self._until = self._asked = float("-inf")
        self._asking = Tasks("asking the regions where users are at home")
        self._task: asyncio.Task[None] | None = None

    async def of(self, user: str) -> str:
        """Return the region in which a user is counted. Raises `StoreThrottled`, as nothing was written, where that may
        not be relied on."""
        now = self._time()
        if now - self._asked >= RENEW_S:
            self._renew()
        if now >= self._until and self._task is not None:
            await asyncio.wait((self._task,))  # which goes on if this check is given up
            now = self._time()
        if now >= self._until:
            raise StoreThrottled(
                "most of the regions are out of reach, so that users may have been moved: nobody is counted meanwhile"
            )
        if self._counts_by != self._told and now >= self._counts_from:
            self._counts_by = self._told
        home = home_of(user, self._at_home(self._told))
        if self._counts_by != self._told and not self._stays(user, home):
            raise StoreThrottled(f"this user is being moved to {home}, and is counted there in some seconds")
        return home

    def _stays(self, user: str, home: str) -> bool:
        """Return whether the user's home is the same by both epochs, with none between that somebody counts by."""
        return self._told.number == self._counts_by.number + 1 and home == home_of(user, self._at_home(self._counts_by))

    def _at_home(self, epoch: Epoch) -> tuple[str, ...]:
        return tuple(region for region in self._regions if region not in epoch.away)

    @property
    def away(self) -> list[str]:
        return sorted(self._told.away)

    def _renew(self) -> None:
        task = self._task
        if task is None or task.done() or task.get_loop() is not asyncio.get_running_loop():
            self._task = self._asking.start(self.ask())

    async def ask(self) -> None:
        asked = self._asked = self._time()
        votes: Counter[Epoch] = Counter()
        reads = [asyncio.ensure_future(self._read(region)) for region in self._regions]
        try:
            for read in asyncio.as_completed(reads):
                told = await read
                if told is None:
                    continue
                votes[told] += 1
                if votes[told] == self._most:
                    self._learn(told, asked)
                    return
        finally:
            for each in reads:
                each.cancel()

    def _learn(self, told: Epoch, asked: float) -> None:
        if told != self._told:
            logger.warning("epoch %d: users are at home in %s", told.number, ", ".join(self._at_home(told)))
            is_new = self._until == float("-inf")
            is_old = self._clock.now() / SECOND - told.at > MAX_SKEW_S + LEASE_S + SLACK_S
            self._counts_from = self._time() + (0 if is_new and is_old else LEASE_S + SLACK_S)
        self._told, self._until = told, asked + LEASE_S

    async def _read(self, region: str) -> Epoch | None:
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                record = await self._stores[region].read(_key(region))
        except (StoreUnavailable, TimeoutError):
            return None
        away = frozenset(region for region in self._regions if record.get(_away(region)))
        return Epoch(record.get(_EPOCH, 0), record.get(_AT, 0), away)

    async def move(self, away: Collection[str]) -> Epoch:
        """Tell the regions which of them are to count nobody. Raises `ConfigError`, and `StoreUnavailable` where less
        than most have been told."""
        for region in away:
            if region not in self._regions:
                raise ConfigError("away", not_in_list(region, self._regions))
        if len(set(away)) == len(self._regions):
            raise ConfigError("away", "are all regions: one has to count")
        found = await asyncio.gather(*map(self._read, self._regions))
        number = 1 + max((epoch.number for epoch in found if epoch is not None), default=0)
        epoch = Epoch(number, self._clock.now() // SECOND, frozenset(away))
        told = sum(await asyncio.gather(*(self._tell(region, epoch) for region in self._regions)))
        if told < self._most:
            raise StoreUnavailable(
                f"{told} of {len(self._regions)} regions say that they were told, and it takes {self._most}: "
                "repeat it from where more of them are in reach"
            )
        return epoch

    async def _tell(self, region: str, epoch: Epoch) -> bool:
        grows = Expect(_EPOCH, high=epoch.number - 1, or_missing=True)
        away = [Put(_away(each), int(each in epoch.away)) for each in self._regions]
        write = Write((grows, Put(_EPOCH, epoch.number), Put(_AT, epoch.at), *away), _FOR_EVER)
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                return (await self._stores[region].apply(_key(region), write, now=self._clock.now())).applied
        except (StoreUnavailable, TimeoutError):
            return False

    async def close(self) -> None:
        await self._asking.cancel()


def _key(region: str) -> Key:
    """Return the name of what a region was told: nobody can be called so."""
    return Key("", f"home@{region}")


def _away(region: str) -> str:
    return f"away {region}"
