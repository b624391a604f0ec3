"""`Homes`: which region counts whom, where an operator may move the users of a region that is lost to the others.

Each region's replica has an item of its own that says which regions are away, with a number that only grows: of one
epoch most regions have been told one thing. Whoever counts asks them, and counts for `LEASE_S` from then
on. By another epoch than before it counts when nobody can count by the old one any more, so that no user is ever
counted in two regions. Only time that passes is compared, not clocks.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Final, NamedTuple

from ratelimit.clock import SECOND, Clock
from ratelimit.errors import ConfigError, StoreThrottled, StoreUnavailable
from ratelimit.names import Key
from ratelimit.regions.regions import home_of, not_in_list
from ratelimit.store.base import Expect, Put, TableStore, Write
from ratelimit.tasks import Tasks

logger = logging.getLogger("ratelimit")

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
        """Return the regions that count nobody, as was told last."""
        return sorted(self._told.away)

    def _renew(self) -> None:
        task = self._task
        if task is None or task.done() or task.get_loop() is not asyncio.get_running_loop():
            self._task = self._asking.start(self.ask())

    async def ask(self) -> None:
        """Ask the regions, until most have told the same."""
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
