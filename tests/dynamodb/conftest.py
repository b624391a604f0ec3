"""What the tests of this room share: a server that answers as DynamoDB does, until it is told to misbehave."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.faults import FaultServer


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with FaultServer() as server:
        yield server
