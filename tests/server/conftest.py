"""What is looked at again and again is looked at often: a test that waits for it waits a moment."""

from __future__ import annotations

import pytest

from ratelimit.server import connection


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several times within the 0.05 s that tests of clients which close one side let go by on the same event loop."""
    monkeypatch.setattr(connection, "LOOK_AGAIN_S", 0.01)
