"""The way of what is written all the time: a check's `UpdateItem`, the usage log's `BatchWriteItem`.

The seam between the stores and the two lanes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec
from botocore.exceptions import ClientError

from ratelimit.dynamodb.client import Client
from ratelimit.dynamodb.errors import AnswerLost, code_of, explained
from ratelimit.dynamodb.expressions import Expressions
from ratelimit.dynamodb.schema import Item, limit_key
from ratelimit.dynamodb.settings import Settings
from ratelimit.names import Key
from ratelimit.store.base import Write


class UpdateResult(msgspec.Struct, frozen=True, gc=False):
    """What an `UpdateItem` came to."""

    applied: bool
    item: Item | None
    """The attributes that were asked for when applied; when the condition failed the whole item. None where there is
    none, or where the engine does not tell."""
    write_units: float = 0.0
    """Consumed capacity, where it was asked for; DynamoDB does not say it for a failed condition."""


class BatchResult(msgspec.Struct, frozen=True, gc=False):
    """What a `BatchWriteItem` came to."""

    left: Sequence[dict[str, Any]]
    """The requests that were not processed."""
    write_units: float = 0.0


class Transport(Protocol):
    """Sends one request, once. Raises what `faults` lists, so that the type says whether it may be sent again."""

    async def apply(self, key: Key, write: Write) -> UpdateResult:
        """The write, on this key's item."""
        ...

    async def write_batch(self, requests: Sequence[Mapping[str, Any]]) -> BatchResult:
        """Up to 25 put or delete requests in wire form, on as many different items."""
        ...

    async def close(self) -> None:
        """Let go of what is the lane's own; harmless when closed."""
        ...


class BotoTransport:
    """The lane that can do everything: aiobotocore's client."""

    __slots__ = ("_capacity", "_client", "_constant", "_expressions", "_place", "_table")

    def __init__(self, connection: Client, settings: Settings) -> None:
        self._client = connection.client
        self._place = connection.place
        self._table = settings.table
        self._constant = constant(settings)
        self._capacity = {name: value for name, value in self._constant.items() if name != "TableName"}
        self._expressions = Expressions()

    async def apply(self, key: Key, write: Write) -> UpdateResult:
        """See `Transport.apply`."""
        request = {"Key": limit_key(key), **self._constant, **self._expressions.update(write)}
        with explained(self._place):
            try:
                answer = await self._client.update_item(**request)
            except ClientError as error:
                if code_of(error) != "ConditionalCheckFailedException":
                    raise
                return UpdateResult(applied=False, item=error.response.get("Item"))
        if "Attributes" not in answer:
            raise AnswerLost(f"{self._place} gave an answer without attributes")
        return UpdateResult(applied=True, item=answer["Attributes"], write_units=units(answer))

    async def write_batch(self, requests: Sequence[Mapping[str, Any]]) -> BatchResult:
        """See `Transport.write_batch`."""
        with explained(self._place):
            answer = await self._client.batch_write_item(RequestItems={self._table: requests}, **self._capacity)
        if "UnprocessedItems" not in answer:
            raise AnswerLost(f"{self._place} answered a batch without saying what was not processed")
        consumed = sum(part.get("CapacityUnits", 0.0) for part in answer.get("ConsumedCapacity") or ())
        return BatchResult(answer["UnprocessedItems"].get(self._table, ()), consumed)

    async def close(self) -> None:
        """Nothing of its own: the connection is the store's."""


def constant(settings: Settings) -> dict[str, str]:
    """The parameters that every request on one key carries."""
    table = {"TableName": settings.table}
    return {**table, "ReturnConsumedCapacity": "TOTAL"} if settings.consumed else table


def units(answer: Mapping[str, Any]) -> float:
    """The consumed capacity in an answer; 0 where it was not asked for."""
    consumed = answer.get("ConsumedCapacity")
    return float(consumed.get("CapacityUnits", 0.0)) if isinstance(consumed, dict) else 0.0
