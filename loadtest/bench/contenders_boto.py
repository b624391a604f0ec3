"""aiobotocore by itself, as it comes: one conditional `UpdateItem`, of the size that a check sends, and no limiter."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session

from loadtest.bench.worker import Contender

_USERS = 256


@asynccontextmanager
async def on_dynamodb(endpoint: str, pool: int = 64) -> AsyncIterator[Contender]:
    """On a table that another contender has made, or on the stub."""
    config = AioConfig(max_pool_connections=pool, proxies={})
    session = get_session()
    async with session.create_client(
        "dynamodb", region_name="eu-west-1", endpoint_url=endpoint, config=config
    ) as client:
        users = itertools.cycle(range(_USERS))

        async def call() -> None:
            await client.update_item(
                TableName="bench",
                Key={"PK": {"S": f"USR#bare-{next(users)}#LIM#hint"}, "SK": {"S": "STATE"}},
                UpdateExpression="SET #tp = :tp, #ttl = :ttl ADD #window :one, #day :one, #month :one",
                ConditionExpression="attribute_not_exists(#window) OR #window <= :most",
                ExpressionAttributeNames={
                    "#tp": "tp", "#ttl": "ttl", "#window": "h494000", "#day": "u261121", "#month": "u2611",
                },
                ExpressionAttributeValues={
                    ":tp": {"S": "lim"}, ":ttl": {"N": "1800000000"}, ":one": {"N": "1"}, ":most": {"N": "999999999"},
                },
                ReturnValues="UPDATED_NEW",
                ReturnValuesOnConditionCheckFailure="ALL_OLD",
            )  # fmt: skip

        yield Contender(call)
