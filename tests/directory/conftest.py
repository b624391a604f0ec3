"""The stores that users and plans are kept in; DynamoDB's share one table, so names must differ."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from ratelimit.dynamodb import DynamoDBStore
from ratelimit.store.directory import DirectoryStore
from ratelimit.store.memory import MemoryDirectoryStore
from tests.engines import Engine

TABLE = "directory-suite"


@pytest.fixture(params=["memory", "dynamodb"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[DirectoryStore]:
    if request.param == "memory":
        yield MemoryDirectoryStore()
        return
    async with on_engine(request.getfixturevalue("engine")) as table:
        yield table.directory


def on_engine(engine: Engine) -> DynamoDBStore:
    return DynamoDBStore(table=TABLE, endpoint=engine.endpoint, create=True, consumed=True)
