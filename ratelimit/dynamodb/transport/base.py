"""How a check's `UpdateItem` is sent: the contract, and aiobotocore's way."""

from __future__ import annotations

from typing import Any, Final, Protocol, TypeAlias

import msgspec
from botocore.exceptions import ClientError

from ratelimit.dynamodb.access import Client
from ratelimit.dynamodb.calls import Stats, capacity, consumed_units, count_fallback
from ratelimit.dynamodb.errors import CONDITION_FAILED, AnswerLost, code_of, explained
from ratelimit.dynamodb.expressions import encode
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


class Transport(Protocol):
    """Sends one update, once. Raises what `errors` lists, so that the type says whether it may be sent again."""

    async def apply(self, key: Key, write: Write) -> Outcome | UpdateResult:
        """Send the write for this key's item. Return the outcome, where it is read already and all there is to tell."""
        ...

    async def close(self) -> None:
        """Let go of what is the transport's own; harmless when closed."""
        ...


class BotoTransport:
    """The one that can do everything: aiobotocore's client."""

    __slots__ = ("_api", "_capacity", "_client", "_place", "_stats", "_table")

    def __init__(self, client: Client, settings: Settings, stats: Stats) -> None:
        self._client = client
        self._api = client.api
        self._place = client.place
        self._stats = stats
        self._table = settings.table
        self._capacity = capacity(settings)

    async def apply(self, key: Key, write: Write) -> UpdateResult:
        count_fallback(self._client, self._stats)
        with explained(self._place):
            try:
                answer = await self._api.update_item(
                    TableName=self._table, Key=limit_key(key), **self._capacity, **encode(write)
                )
            except ClientError as error:
                if code_of(error) != CONDITION_FAILED:
                    raise
                return UpdateResult(applied=False, item=error.response.get("Item"))
        if "Attributes" not in answer:
            raise AnswerLost(f"{self._place} gave an answer without attributes")
        return UpdateResult(applied=True, item=answer["Attributes"], write_units=consumed_units(answer))

    async def close(self) -> None:
        """Do nothing: the client is the store's."""


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


_Attributes: TypeAlias = dict[str, dict[str, Any]]


class AnswerShape(msgspec.Struct):
    """Of any answer, as much as whoever reads it takes for granted."""

    Attributes: _Attributes | None = None
    Item: _Attributes | None = None
    Responses: dict[str, list[_Attributes]] | None = None
    UnprocessedKeys: dict[str, dict[str, Any]] | None = None
    UnprocessedItems: dict[str, list[dict[str, Any]]] | None = None
    Table: dict[str, Any] | None = None
    CancellationReasons: list[dict[str, Any]] | None = None
    ConsumedCapacity: dict[str, Any] | list[Any] | None = None
    message: str | None = None
    Message: str | None = None


decode_numbers: Final = msgspec.json.Decoder(UpdateNumbers, strict=False).decode  # numbers are strings there
decode_update: Final = msgspec.json.Decoder(UpdateBody).decode
decode_error: Final = msgspec.json.Decoder(ErrorBody).decode
check_shape: Final = msgspec.json.Decoder(AnswerShape).decode
