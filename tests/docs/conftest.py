"""What the examples of the pages find around them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ratelimit.clock import SystemClock
from ratelimit.testing import FakeClock


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of their own, and a site for those that are part of one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "tests.docs.django_site")


@pytest.fixture
def noon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time stands still, so that no window ends in the middle of a test."""
    now = FakeClock().now()
    monkeypatch.setattr(SystemClock, "now", lambda self: now)
