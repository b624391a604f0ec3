"""aiobotocore by itself, as it comes: one conditional `UpdateItem`, of the size that a check sends, and no limiter."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session

from loadtest.bench.worker import Call, Contender

_USERS = 256
_COUNTED = 512
POOL = 64
"""Connections that whoever speaks DynamoDB may open."""
WRITES = ("UpdateItem", "PutItem", "DeleteItem", "TransactWriteItems", "BatchWriteItem")


@asynccontextmanager
async def on_dynamodb(endpoint: str) -> AsyncIterator[Contender]:
    """On a table that another contender has made, or on the stub."""
    config = AioConfig(max_pool_connections=POOL, proxies={})
    session = get_session()
    async with session.create_client(
        "dynamodb", region_name="eu-west-1", endpoint_url=endpoint, config=config
    ) as client:
        users = itertools.cycle(range(_USERS))

        async def call() -> None:
            await client.update_item(**check_of(f"bare-{next(users)}"))

        for _ in range(_USERS):
            await call()

        async def count() -> dict[str, float]:
            return await counted(client, call)

        yield Contender(call, count)


def check_of(user: str) -> dict[str, Any]:
    """Return the `UpdateItem` that a check sends."""
    return {
        "TableName": "bench",
        "Key": {"PK": {"S": f"USR#{user}#LIM#hint"}, "SK": {"S": "STATE"}},
        "UpdateExpression": "SET #tp = :tp, #ttl = :ttl ADD #window :one, #day :one, #month :one",
        "ConditionExpression": "attribute_not_exists(#window) OR #window <= :most",
        "ExpressionAttributeNames": {
            "#tp": "tp", "#ttl": "ttl", "#window": "h494000", "#day": "u261121", "#month": "u2611",
        },
        "ExpressionAttributeValues": {
            ":tp": {"S": "lim"}, ":ttl": {"N": "1800000000"}, ":one": {"N": "1"}, ":most": {"N": "999999999"},
        },
        "ReturnValues": "UPDATED_NEW",
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
    }  # fmt: skip


async def counted(client: Any, call: Call) -> dict[str, float]:
    """What a call asks of the store, by a client of botocore's: requests of any kind, as sent, and write units."""
    with CallCounts(client) as counts:
        for _ in range(_COUNTED):
            await call()
    return {
        "calls_per_check": counts.requests.total() / _COUNTED,
        "writes_per_check": counts.requests["UpdateItem"] / _COUNTED,
        "units_per_check": counts.write_units / _COUNTED,
    }


class CallCounts:
    """Asks for the consumed capacity of every call, while entered."""

    def __init__(self, client: Any) -> None:
        self._events = client.meta.events
        self.requests: Counter[str] = Counter()
        self.write_units = 0.0

    def __enter__(self) -> CallCounts:
        self._events.register_first("provide-client-params.dynamodb", self._ask, "bench-ask")
        self._events.register_first("before-send.dynamodb", self._sent, "bench-sent")
        self._events.register_last("after-call.dynamodb", self._add, "bench-add")
        return self

    def __exit__(self, *_: object) -> None:
        self._events.unregister("provide-client-params.dynamodb", unique_id="bench-ask")
        self._events.unregister("before-send.dynamodb", unique_id="bench-sent")
        self._events.unregister("after-call.dynamodb", unique_id="bench-add")

    def _ask(self, params: dict[str, Any], model: Any, **_: object) -> dict[str, Any]:
        if "ReturnConsumedCapacity" not in model.input_shape.members:
            return params
        return {**params, "ReturnConsumedCapacity": "TOTAL"}

    def _sent(self, event_name: str, **_: object) -> None:
        self.requests[event_name.rpartition(".")[2]] += 1

    def _add(self, parsed: dict[str, Any], model: Any, **_: object) -> None:
        consumed = parsed.get("ConsumedCapacity") or []
        units = sum(one["CapacityUnits"] for one in (consumed if isinstance(consumed, list) else [consumed]))
        if not model.name.startswith(WRITES):
            return
        if (error := parsed.get("Error", {}).get("Code")) is not None:
            # Costs what it would have, and does not say so.
            refused = {"ConditionalCheckFailedException": 1, "TransactionCanceledException": 2}
            units = refused.get(error, 0) * len(parsed.get("CancellationReasons", [None]))
        self.write_units += units
