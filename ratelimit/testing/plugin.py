"""The fixtures that pytest has where this package is installed: `limits`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ratelimit.testing.limits import Limits


@pytest.fixture
def limits() -> Iterator[Limits]:
    """All limiters of this process, without anything spent, on a clock that only the test turns (`limits.clock`)."""
    from ratelimit.testing.limits import Limits

    with Limits() as limits:
        yield limits
