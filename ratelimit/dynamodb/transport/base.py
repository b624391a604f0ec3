"""How a check's `UpdateItem` and the usage log's `BatchWriteItem` are sent: the contract, and aiobotocore's way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol, TypeAlias

import msgspec
from botocore.exceptions import ClientError

from ratelimit.cache import LRUCache
from ratelimit.dynamodb.access import Client
from ratelimit.dynamodb.calls import Stats, capacity, consumed_units
from ratelimit.dynamodb.errors import (
    CONDITION_FAILED,
    PART_REFUSED,
    TRANSACTION_CANCELED,
    AnswerLost,
    canceled,
    code_of,
    explained,
)
from ratelimit.dynamodb.expressions import Update, encode
from ratelimit.dynamodb.schema import Item, limit_key
from ratelimit.dynamodb.settings import Settings
from ratelimit.names import Key
from ratelimit.store.base import Outcome, Write

MAX_KNOWN_WRITES: Final = 512
"""A warm check is one `Write` for every user: its expression is kept."""


class UpdateResult(msgspec.Struct, frozen=True, gc=False):
    """What an `UpdateItem` came to, as DynamoDB tells it."""

    applied: bool
    item: Item | None
    """The attributes that were asked for when applied; when the condition failed the whole item. None where there is
    none, or where the engine does not tell."""
    write_units: float = 0.0
    """Consumed capacity, where it was asked for; DynamoDB does not say it for a failed condition."""


class BatchWriteResult(msgspec.Struct, frozen=True, gc=False):
    """What a `BatchWriteItem` came to."""

    left: Sequence[dict[str, Any]]
    """The requests that were not processed."""
    write_units: float = 0.0


class TransactResult(msgspec.Struct, frozen=True, gc=False):
    """What a `TransactWriteItems` came to."""

    refused: Sequence[Item | None]
    """Empty when applied; else of each part whose conditions did not hold the item, which is empty where there is none
    or the engine does not tell, and None of the others."""
    write_units: float = 0.0


def read_transaction(answer: Mapping[str, Any]) -> TransactResult:
    """Return what an answer says, success or not. Raise what `canceled` makes of other reasons than conditions."""
    reasons = answer.get("CancellationReasons") or ()
    codes = [str(reason.get("Code", "None")) for reason in reasons]
    if "Error" in answer and PART_REFUSED not in codes:
        raise canceled(codes)
    refused = [
        reason.get("Item") or {} if code == PART_REFUSED else None for code, reason in zip(codes, reasons, strict=True)
    ]
    return TransactResult(refused, consumed_units(answer))


class Transport(Protocol):
    """Sends one request, once. Raises what `errors` lists, so that the type says whether it may be sent again."""

    async def apply(self, key: Key, write: Write) -> Outcome | UpdateResult:
        """Send the write for this key's item. Return the outcome, where it is read already and all there is to tell."""
        ...

    async def write_batch(self, requests: Sequence[Mapping[str, Any]]) -> BatchWriteResult:
        """Send up to 25 put or delete requests in wire form, on as many different items."""
        ...

    async def transact(self, request: Mapping[str, Any]) -> TransactResult:
        """Send a `TransactWriteItems`, in wire form."""
        ...

    async def close(self) -> None:
        """Let go of what is the transport's own; harmless when closed."""
        ...


class BotoTransport:
    """The one that can do everything: aiobotocore's client. `fallback` is why it is used, where it was not wanted."""

    __slots__ = ("_api", "_capacity", "_place", "_stats", "_table", "_updates", "fallback")

    def __init__(self, client: Client, settings: Settings, stats: Stats, *, fallback: str = "") -> None:
        self.fallback = fallback
        self._api = client.api
        self._place = client.place
        self._stats = stats
        self._table = settings.table
        self._capacity = capacity(settings)
        self._updates: LRUCache[Write, Update] = LRUCache(MAX_KNOWN_WRITES)

    async def apply(self, key: Key, write: Write) -> UpdateResult:
        self._count_fallback()
        update = self._updates.get_or_make(write, lambda: encode(write)) if write.recurs else encode(write)
        with explained(self._place):
            try:
                answer = await self._api.update_item(
                    TableName=self._table, Key=limit_key(key), **self._capacity, **update
                )
            except ClientError as error:
                if code_of(error) != CONDITION_FAILED:
                    raise
                return UpdateResult(applied=False, item=error.response.get("Item"))
        if "Attributes" not in answer:
            raise AnswerLost(f"{self._place} gave an answer without attributes")
        return UpdateResult(applied=True, item=answer["Attributes"], write_units=consumed_units(answer))

    async def write_batch(self, requests: Sequence[Mapping[str, Any]]) -> BatchWriteResult:
        self._count_fallback()
        with explained(self._place):
            answer = await self._api.batch_write_item(RequestItems={self._table: requests}, **self._capacity)
        if "UnprocessedItems" not in answer:
            raise AnswerLost(f"{self._place} answered a batch without saying what was not processed")
        return BatchWriteResult(answer["UnprocessedItems"].get(self._table, ()), consumed_units(answer))

    async def transact(self, request: Mapping[str, Any]) -> TransactResult:
        self._count_fallback()
        with explained(self._place):
            try:
                answer = await self._api.transact_write_items(**request, **self._capacity)
            except ClientError as error:
                if code_of(error) != TRANSACTION_CANCELED:
                    raise
                answer = error.response
        return read_transaction(answer)

    async def close(self) -> None:
        """Do nothing: the client is the store's."""

    def _count_fallback(self) -> None:
        if self.fallback:
            self._stats.fallbacks[self.fallback] += 1


# As much of an answer as is read: msgspec decodes into these, and passes over the rest.


class Consumed(msgspec.Struct):
    CapacityUnits: float = 0.0


class Number(msgspec.Struct, gc=False):
    """An attribute, as far as it is a whole number."""

    N: int | None = None


class UpdateNumbers(msgspec.Struct):
    """Of an `UpdateItem` whose condition held, where all numbers are whole."""

    Attributes: dict[str, Number]
    ConsumedCapacity: msgspec.Raw | None = None


class UpdateBody(msgspec.Struct):
    """The same, whatever it holds."""

    Attributes: dict[str, dict[str, Any]]
    ConsumedCapacity: Consumed | None = None


class ErrorBody(msgspec.Struct):
    """Of whatever was not a success."""

    type: str = msgspec.field(default="", name="__type")
    message: str | None = None
    Message: str | None = None
    Item: dict[str, dict[str, Any]] | None = None


class BatchWriteAnswer(msgspec.Struct):
    """Of a `BatchWriteItem`."""

    UnprocessedItems: dict[str, list[dict[str, Any]]]
    ConsumedCapacity: list[Consumed] = []


_Attributes: TypeAlias = dict[str, dict[str, Any]]


class AnswerShape(msgspec.Struct):
    """Of any answer, as much as whoever reads it takes for granted."""

    Attributes: _Attributes | None = None
    Item: _Attributes | None = None
    Responses: dict[str, list[_Attributes]] | None = None
    UnprocessedKeys: dict[str, dict[str, Any]] | None = None
    Table: dict[str, Any] | None = None
    CancellationReasons: list[dict[str, Any]] | None = None
    ConsumedCapacity: dict[str, Any] | list[Any] | None = None
    message: str | None = None
    Message: str | None = None


decode_numbers: Final = msgspec.json.Decoder(UpdateNumbers, strict=False).decode  # numbers are strings there
decode_update: Final = msgspec.json.Decoder(UpdateBody).decode
decode_error: Final = msgspec.json.Decoder(ErrorBody).decode
check_shape: Final = msgspec.json.Decoder(AnswerShape).decode
decode_batch: Final = msgspec.json.Decoder(BatchWriteAnswer).decode
