"""`SplitStore`: every region has a fixed share of each quota, and counts what is asked there in an item of its own.

No region asks another one, or waits for what another has counted. Only the totals, which decide nothing, are the sum.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ratelimit.algorithms.fields import is_total
from ratelimit.names import Key
from ratelimit.policy import Policy
from ratelimit.quota import INACTIVE, UNLIMITED, Quota, Quotas
from ratelimit.regions.sum import SumStore, item_of
from ratelimit.store.base import Outcome, Record, Store, TableStore, Write
from ratelimit.store.delegating import layers

logger = logging.getLogger("ratelimit")


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
                    "quota a larger limit",
                    policy.name,
                    whole,
                    self.here,
                )
        return shared

    def _part(self, amount: int) -> int:
        return -(-amount * self._upto // self._whole) + (-amount * self._before // self._whole)

    async def apply(self, key: Key, write: Write, *, now: int) -> Outcome:
        return await self.inner.apply(item_of(key, self.here), write, now=now)

    async def apply_all(self, writes: Sequence[tuple[Key, Write]], *, now: int) -> Sequence[Outcome]:
        return await self.inner.apply_all([(item_of(key, self.here), write) for key, write in writes], now=now)

    def merged(self, by_region: Mapping[str, Record]) -> Record:
        """Return what is counted here, with the totals of all regions."""
        totals = {field: value for field, value in super().merged(by_region).items() if is_total(field)}
        return {**by_region[self.here], **totals}


def split_of(store: Store) -> SplitStore | None:
    """Return the store that has a share only, among those that a store stands on."""
    return next((layer for layer in layers(store) if isinstance(layer, SplitStore)), None)
