"""Tables made by hand, for tests of what is done about them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from uuid import uuid4

from ratelimit.dynamodb import Settings, TableProtected, TableSpec, create_table, delete_table, upgrade_table
from ratelimit.dynamodb.client import connect
from tests.engines import Engine


async def make(settings: Settings, **changes: Any) -> None:
    """Somebody else's table: our keys, and nothing besides, unless `changes` say otherwise."""
    definition: dict[str, Any] = {
        "TableName": settings.table,
        "BillingMode": "PAY_PER_REQUEST",
        "AttributeDefinitions": strings("PK", "SK"),
        "KeySchema": keys("PK", "SK"),
    }
    async with await connect(settings) as connection:
        await connection.api.create_table(**(definition | changes))


def strings(*names: str) -> list[dict[str, str]]:
    """Attribute definitions."""
    return [{"AttributeName": name, "AttributeType": "S"} for name in names]


def keys(*names: str) -> list[dict[str, str]]:
    """A key schema: partition, then sort."""
    return [{"AttributeName": name, "KeyType": kind} for name, kind in zip(names, ("HASH", "RANGE"), strict=False)]


def index(name: str, *names: str, projection: str = "ALL") -> dict[str, Any]:
    """A secondary index."""
    return {"IndexName": name, "KeySchema": keys(*names), "Projection": {"ProjectionType": projection}}


async def remove(settings: Settings) -> None:
    """Whatever is there, protected or not."""
    try:
        await delete_table(settings)
    except TableProtected:
        await upgrade_table(settings, TableSpec(protected=False, recovery=False))
        await delete_table(settings)


@asynccontextmanager
async def replicated(engine: Engine, here: str, *others: str) -> AsyncIterator[Settings]:
    """A table with replicas, for `home` over all of the regions."""
    table = Settings(table=f"replicas-{uuid4()}", endpoint=engine.endpoint, region=here)
    await create_table(table)
    async with await connect(table) as client:
        for change in ("Create", "Delete"):
            for there in others:
                await client.api.update_table(TableName=table.table, ReplicaUpdates=[{change: {"RegionName": there}}])
            if change == "Create":
                yield replace(table, regions=(here, *others), mode="home")
    await remove(table)


async def expire_by(settings: Settings, attribute: str) -> None:
    async with await connect(settings) as connection:
        await connection.api.update_time_to_live(
            TableName=settings.table, TimeToLiveSpecification={"Enabled": True, "AttributeName": attribute}
        )
