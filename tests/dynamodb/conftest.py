"""What the tests of this room share: a table that is not there yet, and a server that misbehaves when told to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from ratelimit.dynamodb import Settings
from tests.dynamodb.tables import remove
from tests.engines import Engine
from tests.faults import FaultServer


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with FaultServer() as server:
        yield server


@pytest.fixture
async def settings(engine: Engine) -> AsyncIterator[Settings]:
    """A table that does not exist, and will not afterwards."""
    settings = Settings(table=f"table-{uuid4()}", endpoint=engine.endpoint)
    yield settings
    await remove(settings)
