"""The present, as tests take it that read from an engine: today, since it may delete what has expired; and at noon, so
that none crosses midnight."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from ratelimit.algorithms.fields import utc_day
from ratelimit.clock import DAY
from ratelimit.testing import FakeClock

NOON = time.time_ns() // 1000 // DAY * DAY + DAY // 2
TODAY = utc_day(NOON)


def at_noon() -> FakeClock:
    return FakeClock(NOON / 1_000_000)


def days_ago(days: float) -> datetime:
    return datetime.fromtimestamp(NOON / 1_000_000, UTC) - timedelta(days=days)
