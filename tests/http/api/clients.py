"""A client of the API on a store: what the tests of this room share."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import httpx
import pytest

from ratelimit import Directory, Limiter, MemoryStore, Policy, UsageLog
from ratelimit.clock import DAY
from ratelimit.dynamodb import DynamoDBStore
from ratelimit.http.api import Api
from ratelimit.store import TableStore
from ratelimit.testing import FakeClock
from tests.engines import Engine
from tests.http.apps import client_of

# An engine may delete what has expired, so it is today; at noon, so that no test crosses midnight.
NOON = time.time_ns() // 1000 // DAY * DAY + DAY // 2
POLICIES = (Policy("hint", "5/day"), Policy("run", "20/minute; 100/day"))


class Service(NamedTuple):
    """The API, and what is behind it."""

    client: httpx.AsyncClient
    limiter: Limiter
    usage: UsageLog
    store: TableStore


@asynccontextmanager
async def service_on(store: TableStore, **options: Any) -> AsyncIterator[Service]:
    clock = FakeClock(NOON / 1_000_000)
    directory = Directory(store.directory, clock=clock)
    limiter = Limiter(store, POLICIES, clock=clock, directory=directory)
    async with limiter, UsageLog(store, actions=limiter.policies, clock=limiter.clock) as usage:
        async with client_of(Api(limiter, store, usage=usage, directory=directory, **options)) as client:
            yield Service(client, limiter, usage, store)


@pytest.fixture(params=["memory", "dynamodb"])
async def service(request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    """On one table for all tests: names have to differ."""
    store: TableStore = MemoryStore()
    if request.param == "dynamodb":
        engine: Engine = request.getfixturevalue("engine")
        store = DynamoDBStore(table="api-suite", endpoint=engine.endpoint, create=True)
    async with service_on(store) as running:
        yield running
