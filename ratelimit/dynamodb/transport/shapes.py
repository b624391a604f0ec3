"""What an answer looks like, as far as it is read: msgspec decodes into these, and passes over the rest."""

from __future__ import annotations

from typing import Any, Final

import msgspec


class Capacity(msgspec.Struct):
    """What was consumed."""

    CapacityUnits: float = 0.0


class UpdateBody(msgspec.Struct):
    """Of an `UpdateItem` whose condition held."""

    Attributes: dict[str, dict[str, Any]]
    ConsumedCapacity: Capacity | None = None


class ErrorBody(msgspec.Struct):
    """Of whatever was not a success."""

    type: str = msgspec.field(default="", name="__type")
    message: str | None = None
    Message: str | None = None
    Item: dict[str, dict[str, Any]] | None = None


class BatchBody(msgspec.Struct):
    """Of a `BatchWriteItem`."""

    UnprocessedItems: dict[str, list[dict[str, Any]]]
    ConsumedCapacity: list[Capacity] = []


read_applied: Final = msgspec.json.Decoder(UpdateBody).decode
read_refused: Final = msgspec.json.Decoder(ErrorBody).decode
read_batch: Final = msgspec.json.Decoder(BatchBody).decode
