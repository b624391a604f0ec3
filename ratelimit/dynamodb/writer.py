"""`Writer`: a check's write, by the lane, and again where that cannot count twice."""

from __future__ import annotations

from functools import partial

from ratelimit.dynamodb.expressions import record_of
from ratelimit.dynamodb.lane import Answer, Lane
from ratelimit.dynamodb.retries import Retries
from ratelimit.dynamodb.schema import Item
from ratelimit.dynamodb.stats import Stats
from ratelimit.errors import StoreMisconfigured, StoreUnavailable
from ratelimit.names import Key
from ratelimit.store.write import Outcome, Record, Write


class Writer:
    """On one table, which is named where it holds what it should not."""

    def __init__(self, lane: Lane, retries: Retries, stats: Stats, table: str) -> None:
        self._lane = lane
        self._retries = retries
        self._stats = stats
        self._table = table

    async def apply(self, key: Key, write: Write) -> Outcome:
        """See `Store.apply`."""
        self._stats.count_call("UpdateItem")
        try:
            answer = await self._lane.apply(key, write)
        except StoreUnavailable as error:
            failed = error
        else:
            return self._outcome(answer)
        return self._outcome(await self._retries.after(failed, "UpdateItem", partial(self._lane.apply, key, write)))

    def _outcome(self, answer: Answer) -> Outcome:
        self._stats.write_units += answer.write_units
        return Outcome(answer.applied, record_in(answer.item, self._table))


def record_in(item: Item, table: str) -> Record:
    """The fields of an item. Raises `StoreMisconfigured`."""
    try:
        return record_of(item)
    except (ValueError, TypeError) as error:
        raise StoreMisconfigured(f"table {table!r} holds a counter that is no whole number") from error
