"""`SumStore`: every region counts in an item of its own, and admits what fits beside what it believes of the others.
`SplitStore`: it admits a fixed share of each quota instead, whatever the others do.

No item is written in two regions, so that nothing is lost, and no check crosses to another one. Of the others' items
the own replica is read: to sum the totals up, which decide nothing, and for a `SumStore` in the background, at most
`REFRESH_US` ago. What they have admitted since then, and what is still on its way here, that one does not see. So a
quota may be exceeded, by no more than what the other regions admit meanwhile.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from ratelimit.algorithms.fields import RESET, current_totals, is_held, is_total, stale
from ratelimit.blocking import is_blocking
from ratelimit.cache import LRUCache
from ratelimit.clock import MINUTE, SECOND, Clock, SystemClock
from ratelimit.cursor import Page
from ratelimit.errors import StoreMisconfigured, StoreUnavailable
from ratelimit.names import Key
from ratelimit.policy import Policy
from ratelimit.quota import INACTIVE, UNLIMITED, Quota, Quotas
from ratelimit.regions.regions import NOT_A_SUM
from ratelimit.regions.stores import RegionsStore
from ratelimit.store.base import (
    MAX_WRITES_AT_ONCE,
    WHOLE,
    Add,
    Drop,
    Expect,
    Op,
    Outcome,
    Part,
    Put,
    Record,
    Scans,
    Store,
    TableStore,
    Write,
    batches,
)
from ratelimit.store.delegating import layers
from ratelimit.tasks import Tasks

logger = logging.getLogger("ratelimit")

REFRESH_US: Final = 1 * SECOND
"""The oldest that what is believed of the others may be. It is renewed in the background from half of that on."""
ASSUMED_LAG_US: Final = 1 * SECOND
"""Of the replication, for what is told: AWS measures it (`ReplicationLatency`), and promises nothing."""
EXCESS_KEPT_US: Final = MINUTE
MAX_BELIEFS: Final = 10_000
MAX_REFRESHES: Final = 1_000


class SumStore(RegionsStore):
    """A store that counts in the own region, beside what the others have counted."""

    def __init__(self, stores: Mapping[str, TableStore], here: str, *, clock: Clock | None = None) -> None:
        super().__init__(stores, here)
        self._others = tuple(region for region in stores if region != here)
        self._clock = clock or SystemClock()
        self._beliefs: LRUCache[Key, _Belief] = LRUCache(MAX_BELIEFS)
        self._refreshes = Tasks("reading what other regions have counted", limit=MAX_REFRESHES)
        self.found = 0
        """Units that the others were found to have admitted since they were last looked at."""
        self._excess = (0, 0.0)

    @property
    def excess(self) -> float:
        """Return how many units a quota may be exceeded by: the most of any user within the last minute, at the rate at
        which the others were found to admit, for as long as that is not seen here."""
        at, units = self._excess
        return units if self._clock.now() - at < EXCESS_KEPT_US else 0.0

    @property
    def scans(self) -> Scans:
        return _SumScans(self, self.inner.scans)

    async def close(self) -> None:
        if not is_blocking():
            await self._refreshes.cancel()
        await super().close()

    async def apply(self, key: Key, write: Write, *, now: int) -> Outcome:
        summed = tuple([op for op in write.ops if op.field != RESET])  # a moment is nothing to add up
        if len(summed) < len(write.ops):
            write = msgspec.structs.replace(write, ops=summed)
        if all(type(op) is Drop for op in write.ops):
            await self._drop_elsewhere(key, write, now)
        others = await self._believed(key)
        outcome = await self.inner.apply(item_of(key, self.here), _less(write, others), now=now)
        return _plus(outcome, others, write)

    async def apply_all(self, writes: Sequence[tuple[Key, Write]], *, now: int) -> Sequence[Outcome]:
        others = [await self._believed(key) for key, _ in writes]
        own = [
            (item_of(key, self.here), _less(write, beside)) for (key, write), beside in zip(writes, others, strict=True)
        ]
        outcomes = await self.inner.apply_all(own, now=now)
        parts = zip(outcomes, others, writes, strict=True)
        return [_plus(outcome, beside, write) for outcome, beside, (_, write) in parts]

    async def read(self, key: Key) -> Record:
        return (await self.read_all([key]))[0]

    async def read_all(self, keys: Sequence[Key]) -> Sequence[Record]:
        return [self.merged(records) for records in await self.by_region(keys)]

    def merged(self, by_region: Mapping[str, Record]) -> Record:
        return _sum(by_region.values())

    async def by_region(self, keys: Sequence[Key]) -> list[dict[str, Record]]:
        """Return what each region has counted, as the replica here has it."""
        items = [item_of(key, region) for key in keys for region in self._regions]
        found: list[Record] = []
        for some in batches(items, MAX_WRITES_AT_ONCE):
            found += await self.inner.read_all(some)
        return [dict(zip(self._regions, each, strict=True)) for each in batches(found, len(self._regions))]

    async def delete(self, key: Key) -> None:
        """In every region, each its own item. Raises `StoreUnavailable` where one is out of reach: repeat it then."""
        for region, store in self.stores.items():
            await store.delete(item_of(key, region))
        self._beliefs.pop(key)

    async def _drop_elsewhere(self, key: Key, write: Write, now: int) -> None:
        """Drop what still counts (a reset) from the others' items too, each in its own region. Raises
        `StoreUnavailable` where one is out of reach: repeat it then."""
        gone = stale([op.field for op in write.ops], now)
        ops = tuple(op for op in write.ops if op.field not in gone)
        for region in self._others if ops else ():
            await self.stores[region].apply(item_of(key, region), Write(ops, write.expires_at), now=now)
            self._beliefs.pop(key)

    async def _believed(self, key: Key) -> Record:
        if not self._others:
            return {}
        now = self._clock.now()
        belief = self._beliefs.get(key)
        if belief is None or not 0 <= now - belief.at < REFRESH_US:
            return await self._refresh(key)
        due = now - belief.at >= REFRESH_US // 2 and not belief.is_refreshing
        if due and not self._refreshes.is_full and not is_blocking():
            belief.is_refreshing = True
            self._refreshes.start(self._renew(key))
        return belief.record

    async def _renew(self, key: Key) -> None:
        with suppress(StoreUnavailable):  # a check that finds it too old asks for it again
            await self._refresh(key)

    async def _refresh(self, key: Key) -> Record:
        now = self._clock.now()
        record = _sum(await self.inner.read_all([item_of(key, region) for region in self._others]))
        for field in stale(record, now):
            del record[field]
        self._note(self._beliefs.get(key), record, now)
        self._beliefs.put(key, _Belief(record, now))
        return record

    def _note(self, belief: _Belief | None, record: Record, now: int) -> None:
        if belief is None or now <= belief.at:
            return
        today, _ = current_totals(now)
        found = max(0, record.get(today, 0) - belief.record.get(today, 0))
        self.found += found
        excess = found * (ASSUMED_LAG_US + REFRESH_US) / (now - belief.at)
        if excess >= self.excess:
            self._excess = (now, excess)


@dataclass(slots=True)
class _Belief:
    """What the other regions have counted, when that was read, and whether it is being read again."""

    record: Record
    at: int
    is_refreshing: bool = False


class _SumScans:
    """The scans of a `SumStore`: every record once, as the sum of its items."""

    def __init__(self, store: SumStore, inner: Scans) -> None:
        self._store = store
        self._inner = inner
        self.events = inner.events

    async def records(
        self, *, field: str | None = None, cursor: str | None = None, part: Part = WHOLE
    ) -> Page[tuple[Key, Record]]:
        """Return a record where the first of its items is found that has the field; the others are read for it."""
        page = await self._inner.records(field=field, cursor=cursor, part=part)
        items = [found for item, _ in page.entries if (found := _parts_of(item, self._store.stores)) is not None]
        entries: list[tuple[Key, Record]] = []
        for (key, region), records in zip(items, await self._store.by_region([key for key, _ in items]), strict=True):
            having = [each for each, record in records.items() if (field in record if field else record)]
            if having[:1] == [region]:
                merged = self._store.merged(records)
                entries.append((key, merged if field is None else {field: merged.get(field, 0)}))
        return Page(tuple(entries), page.cursor)


def item_of(key: Key, region: str) -> Key:
    """Return the name of the item in which a region counts."""
    return Key(key.user, f"{key.action}@{region}")


def _parts_of(item: Key, regions: Iterable[str]) -> tuple[Key, str] | None:
    action, _, region = item.action.rpartition("@")
    return (Key(item.user, action), region) if region in regions else None


def _sum(records: Iterable[Record]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for record in records:
        total.update(record)
    return dict(total)


def _less(write: Write, others: Record) -> Write:
    """Return the write for the own item that keeps the conditions for the sum."""
    if any(type(op) is Put or (type(op) is Add and is_held(op.field)) for op in write.ops):
        raise StoreMisconfigured(NOT_A_SUM)
    if not any(op.field in others for op in write.ops):
        return write
    return msgspec.structs.replace(write, ops=tuple(_less_op(op, others.get(op.field, 0)) for op in write.ops))


def _less_op(op: Op, others: int) -> Op:
    if others and type(op) is Add and op.at_most is not None:
        return Add(op.field, op.amount, op.at_most - others)
    if others and type(op) is Expect:
        low = None if op.low is None else op.low - others
        high = None if op.high is None else op.high - others
        # A missing item of ours counts as 0, now that the others have one.
        zero_fits = (low is None or low <= 0) and (high is None or high >= 0)
        return Expect(op.field, low, high, or_missing=zero_fits)
    return op


def _plus(outcome: Outcome, others: Record, write: Write) -> Outcome:
    if not others:
        return outcome
    if write.whole or not outcome.applied:
        return Outcome(outcome.applied, _sum((outcome.record, others)))
    return Outcome(True, {field: value + others.get(field, 0) for field, value in outcome.record.items()})


class SplitStore(SumStore):
    """A store that counts in the own region, by that region's share."""

    def __init__(self, stores: Mapping[str, TableStore], here: str, shares: Sequence[int] = ()) -> None:
        super().__init__(stores, here)
        weights = tuple(shares) or (1,) * len(stores)
        place = self._regions.index(here)
        self._before, self._upto, self._whole = sum(weights[:place]), sum(weights[: place + 1]), sum(weights)

    def share(self, quotas: Quotas) -> Quotas:
        """Return what falls to this region: of a limit, the shares of all regions add up to it exactly, the first of
        them having the remainder. A bucket holds at least one unit at once."""
        if quotas is UNLIMITED or quotas is INACTIVE:
            return quotas
        return tuple(
            Quota(
                self._part(quota.limit), quota.window, None if quota.burst is None else max(1, self._part(quota.burst))
            )
            for quota in quotas
        )

    def share_policy(self, policy: Policy) -> Policy:
        """Return the policy with its share, and warn of a quota of which nothing falls to this region."""
        shared = replace(policy, quotas=self.share(policy.quotas))
        for whole, own in zip(policy.quotas, shared.quotas, strict=True):
            if own.limit == 0 < whole.limit:
                logger.warning(
                    "policies.%s: of %s nothing falls to %s, which refuses everybody: give it a larger share, or the "
                    "quota a larger limit", policy.name, whole, self.here,
                )  # fmt: skip
        return shared

    def _part(self, amount: int) -> int:
        return -(-amount * self._upto // self._whole) + (-amount * self._before // self._whole)

    async def apply(self, key: Key, write: Write, *, now: int) -> Outcome:
        return await self.inner.apply(item_of(key, self.here), write, now=now)

    async def apply_all(self, writes: Sequence[tuple[Key, Write]], *, now: int) -> Sequence[Outcome]:
        return await self.inner.apply_all([(item_of(key, self.here), write) for key, write in writes], now=now)

    def merged(self, by_region: Mapping[str, Record]) -> Record:
        totals = {field: value for field, value in super().merged(by_region).items() if is_total(field)}
        return {**by_region[self.here], **totals}


def split_of(store: Store) -> SplitStore | None:
    """Return the store that has a share only, among those that a store stands on."""
    return next((layer for layer in layers(store) if isinstance(layer, SplitStore)), None)
