"""A server that misbehaves where it is told to, and the blocking limiter on it."""

from __future__ import annotations

import pytest

from ratelimit.testing import FakeClock
from tests.faults.apart import Apart


@pytest.fixture
def url(apart: Apart) -> str:
    return f"dynamodb://limits?region=eu-west-1&endpoint={apart.server.endpoint}"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()
