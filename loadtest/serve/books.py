"""`Books`: the stores of one server, what they were asked for, and, at the end, what they hold."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import aclosing
from typing import Any, Final

from ratelimit.algorithms.totals import totals_of
from ratelimit.clock import DAY
from ratelimit.dynamodb import DynamoDBStore, parse_url
from ratelimit.limiter import Limiter
from ratelimit.policy import Policy
from ratelimit.store import MemoryStore, TableStore
from ratelimit.store.base import Ask, each_part_page, first_cursors
from ratelimit.usage import UsageLog

from ..plan import QUOTAS

DEADLINE: Final = 5.0
"""Seconds a check may take: so long that a slow engine shows in the latencies, and not as one that failed."""
_MOST: Final = 10_000_000

Sums = dict[str, dict[str, int]]
"""By action, then user."""


class Books:
    """Makes limiters, each on a store of its own, so that its writes are counted apart; and one usage log."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stores: dict[str, TableStore] = {}
        self.log_store = self._open()
        self.usage = UsageLog(self.log_store, actions=QUOTAS, grace=60.0)

    def limiter(self, meter: str, actions: Iterable[str]) -> Limiter:
        """For these actions; not open yet. A store that fails shows as a failure, and never as a refusal."""
        store = self._stores[meter] = self._open()
        policies = [
            Policy(action, QUOTAS[action], match=_MATCHES.get(action, ()), on_unavailable="deny") for action in actions
        ]
        return Limiter(store, policies, deadline=DEADLINE)

    async def open(self) -> None:
        for store in (self.log_store, *self._stores.values()):
            await store.open()
        await self.usage.open()

    async def close(self) -> None:
        """All that was opened, the log first."""
        await self.usage.close()
        for store in (self.log_store, *self._stores.values()):
            await store.close()

    async def count(self, prefix: str) -> dict[str, Any]:
        """What is held of the users whose name begins like this, when all that was accepted has been written."""
        await self.usage.flush()
        is_shared = isinstance(self.log_store, DynamoDBStore)
        counters = [self.log_store] if is_shared else list(self._stores.values())
        totals: Sums = defaultdict(lambda: defaultdict(int))
        for store in counters:
            await _add_totals(store, prefix, totals)
        return {
            "meters": {name: _writes(store) for name, store in self._stores.items()},
            "log": {**_writes(self.log_store), "events": self.usage.stats.written},
            "shared": is_shared,
            "totals": totals,
            "events": await _events(self.log_store, prefix),
        }

    def _open(self) -> TableStore:
        if self._url.startswith("memory://"):
            store = MemoryStore(max_keys=_MOST)
            store.events.max_events = _MOST
            return store
        return DynamoDBStore(parse_url(self._url), consumed=True)


_MATCHES: Final = {"hello": "GET /hello", "order": ()}


def _writes(store: TableStore) -> dict[str, float]:
    """DynamoDB does not tell what a refused write consumed: at least one unit, like any other write."""
    if not isinstance(store, DynamoDBStore):
        return {"writes": 0, "units": 0.0}
    writes = store.stats.calls.get("UpdateItem", 0)
    return {"writes": writes, "units": max(float(writes), store.stats.write_units)}


async def _add_totals(store: TableStore, prefix: str, totals: Sums) -> None:
    async for page in _pages(lambda part, cursor: store.scans.records(cursor=cursor, part=part)):
        for key, record in page:
            if key.user.startswith(prefix):
                totals[key.action][key.user] += sum(totals_of(record).values())


async def _events(store: TableStore, prefix: str) -> Sums:
    """The cost of those that were allowed. A test that goes on over midnight has two days."""
    until = time.time_ns() // 1_000_000 + 60_000
    since = until - 2 * DAY // 1000
    events: Sums = defaultdict(lambda: defaultdict(int))
    async for page in _pages(
        lambda part, cursor: store.scans.events(since=since, until=until, cursor=cursor, part=part)
    ):
        for event in page:
            if event.user.startswith(prefix) and event.allowed:
                events[event.action][event.user] += event.cost
    return events


async def _pages(ask: Ask[Any]) -> Any:
    async with aclosing(each_part_page(ask, first_cursors(1), of=1)) as pages:
        async for _, page in pages:
            yield page.entries
