"""The stores that events are kept in; DynamoDB's share one table, so users must differ."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from ratelimit.dynamodb import DynamoDBStore
from ratelimit.store import MemoryStore, TableStore
from tests.engines import Engine

TABLE = "usage-suite"


@pytest.fixture(params=["memory", "dynamodb"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[TableStore]:
    store: TableStore = MemoryStore()
    if request.param == "dynamodb":
        store = on_engine(request.getfixturevalue("engine"))
    await store.open()
    yield store
    await store.close()


def on_engine(engine: Engine) -> DynamoDBStore:
    return DynamoDBStore(table=TABLE, endpoint=engine.endpoint, create=True, consumed=True)
