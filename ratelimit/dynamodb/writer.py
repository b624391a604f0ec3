"""`ConditionalWriter`: a check's write, sent, and sent again where that cannot count twice."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any
from uuid import uuid4

from ratelimit.cache import LRUCache
from ratelimit.dynamodb.calls import (
    HARMLESS,
    NOT_EXECUTED,
    TRANSACTION_ATTEMPTS,
    TRANSACTION_BACKOFF,
    ConditionFailed,
    Retries,
    TableCalls,
)
from ratelimit.dynamodb.errors import PART_REFUSED, canceled
from ratelimit.dynamodb.expressions import Update, part_of_transaction
from ratelimit.dynamodb.schema import Item, limit_key, record_of
from ratelimit.dynamodb.transport.base import MAX_KNOWN_WRITES, Transport, UpdateResult
from ratelimit.errors import StoreMisconfigured, StoreUnavailable
from ratelimit.names import Key
from ratelimit.store.base import Outcome, Record, Write

logger = logging.getLogger("ratelimit")


class ConditionalWriter:
    """Writes to one table, which is named where it holds what it should not.

    DynamoDB answers a refused write with the item. Some engines for development do not: until one has been seen to,
    what it does not tell is read.
    """

    def __init__(self, transport: Transport, calls: TableCalls, retries: Retries, *, tells: bool) -> None:
        self._transport = transport
        self._calls = calls
        self._retries = retries
        self._stats = calls.stats
        self._transactions = Retries(TRANSACTION_ATTEMPTS, self._stats, pause=TRANSACTION_BACKOFF.pause)
        self._table = calls.table
        self._tells = tells
        self._warned = False
        self._parts: LRUCache[Write, Update] = LRUCache(MAX_KNOWN_WRITES)

    async def apply(self, key: Key, write: Write) -> Outcome:
        self._stats.calls["UpdateItem"] += 1
        answer: Outcome | UpdateResult | None = None
        failed: StoreUnavailable | None = None
        try:
            answer = await self._transport.apply(key, write)
        except StoreUnavailable as error:
            failed = error
        if answer is None:
            assert failed is not None
            again = partial(self._transport.apply, key, write)
            answer = await self._retries.after(failed, "UpdateItem", again, on=NOT_EXECUTED)
        if isinstance(answer, Outcome):
            return answer
        self._stats.write_units += answer.write_units
        if answer.item is None:
            return Outcome(answer.applied, {} if self._tells else await self._untold(key))
        if not answer.applied:
            self._tells = True
        return Outcome(answer.applied, record_in(answer.item, self._table))

    async def apply_all(self, writes: Sequence[tuple[Key, Write]]) -> list[Outcome]:
        """Write all or none. The token makes a second sending of what was executed a success, for ten minutes."""
        request = {
            "TransactItems": [
                {"Update": {"TableName": self._table, "Key": limit_key(key), **self._part(write)}}
                for key, write in writes
            ],
            "ClientRequestToken": str(uuid4()),
        }
        call = partial(self._transact, request)
        refused = await self._transactions.run("TransactWriteItems", call, on=HARMLESS)
        if not refused:
            return [Outcome(True, {}) for _ in writes]
        return [
            Outcome(True, {}) if item is None else Outcome(False, await self._record(key, item))
            for (key, _), item in zip(writes, refused, strict=True)
        ]

    async def _transact(self, request: Mapping[str, Any]) -> list[Item | None]:
        """Return nothing when applied; else of each part whose conditions did not hold the item, which is empty where
        there is none or the engine does not tell, and None of the others. Raise `canceled` for any other reason."""
        try:
            await self._calls.send("TransactWriteItems", **request)
        except ConditionFailed as failed:
            reasons = failed.response.get("CancellationReasons") or ()
        else:
            return []
        codes = [str(reason.get("Code", "None")) for reason in reasons]
        if PART_REFUSED not in codes:
            raise canceled(codes)
        parts = zip(codes, reasons, strict=True)
        return [(reason.get("Item") or {}) if code == PART_REFUSED else None for code, reason in parts]

    def _part(self, write: Write) -> Update:
        if not write.recurs:
            return part_of_transaction(write)
        return self._parts.get_or_make(write, lambda: part_of_transaction(write))

    async def _record(self, key: Key, item: Item) -> Record:
        """Return the record of a refused part, which is empty where there is none, or where it is not told."""
        if not item:
            return {} if self._tells else await self._untold(key)
        self._tells = True
        return record_in(item, self._table)

    async def _untold(self, key: Key) -> Record:
        """Read the record with which a write was refused, or a later one: what it says decides either way."""
        record = await read_record(self._calls, key)
        if record and not self._warned:
            self._warned = True
            logger.warning(
                "what answers for table %r does not say why it refuses a write, as DynamoDB does "
                "(ReturnValuesOnConditionCheckFailure): each refusal costs a read more",
                self._table,
            )
        return record


async def read_record(calls: TableCalls, key: Key) -> Record:
    answer = await calls.run("GetItem", Key=limit_key(key), ConsistentRead=True)
    return record_in(answer.get("Item", {}), calls.table)


def record_in(item: Item, table: str) -> Record:
    """Return the fields of an item. Raise `StoreMisconfigured`."""
    try:
        return record_of(item)
    except (ValueError, TypeError) as error:
        raise StoreMisconfigured(f"table {table!r} holds a counter that is no whole number") from error
