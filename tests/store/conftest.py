"""The stores that the suite runs over, each fresh for a test; DynamoDB's share one table, so users must differ."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest

from ratelimit.dynamodb import DynamoDBStore
from ratelimit.names import Key
from ratelimit.store import MemoryStore, Store
from ratelimit.store.hashed import HashedUserStore
from tests.engines import Engine

TABLE = "store-suite"


_ON_AN_ENGINE = [pytest.param(name, marks=pytest.mark.engine) for name in ("dynamodb-fast", "dynamodb-slow")]


@pytest.fixture(params=["memory", "pseudonymous", *_ON_AN_ENGINE])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    store: Store = MemoryStore()
    if request.param == "pseudonymous":
        store = HashedUserStore(MemoryStore(), "a secret of the application")
    elif request.param != "memory":
        store = dynamodb(request.getfixturevalue("engine"), fast=request.param == "dynamodb-fast")
    await store.open()
    yield store
    await store.close()


def dynamodb(engine: Engine, **options: Any) -> DynamoDBStore:
    return DynamoDBStore(table=TABLE, endpoint=engine.endpoint, create=True, **options)


@pytest.fixture
def key() -> Key:
    return new_key()


def new_key(action: str = "hint") -> Key:
    return Key.of(f"user-{uuid4()}", action)
