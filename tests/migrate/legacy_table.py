"""A table as the earlier layout had it, filled with items."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from ratelimit.dynamodb import create_table, parse_url
from ratelimit.dynamodb.client import connect
from ratelimit.migrate import migration_settings
from tests.migrate.sources import chunks

_AT_ONCE = 8


async def fill(url: str, items: Iterable[dict[str, Any]]) -> str:
    """`url` is a store's; what comes back is a source's."""
    settings = migration_settings(parse_url(url))
    await create_table(settings)
    turns = asyncio.Semaphore(_AT_ONCE)
    async with await connect(settings) as connection:

        async def put(several: list[dict[str, Any]]) -> None:
            left: dict[str, Any] = {settings.table: [{"PutRequest": {"Item": item}} for item in several]}
            async with turns:
                while left:
                    left = (await connection.api.batch_write_item(RequestItems=left))["UnprocessedItems"]

        for many in chunks(items, 2000):
            await asyncio.gather(*map(put, chunks(many, 25)))
    return url.replace("dynamodb://", "earlier://")
