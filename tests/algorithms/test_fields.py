"""Field names: what is past its use is found, and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from ratelimit.algorithms.fields import (
    DAYS_KEPT,
    MONTHS_KEPT,
    bucket_field,
    current_totals,
    day_field,
    stale,
    window_field,
)
from ratelimit.clock import SECOND
from ratelimit.quota import UNITS, Window

windows = st.builds(lambda count, unit: Window(count, unit), st.integers(1, 9), st.sampled_from(UNITS))
moments = st.integers(SECOND * 86400 * 366 * 30, SECOND * 86400 * 365 * 100)


@given(windows, moments, st.integers(0, 5))
def test_windows_older_than_what_a_clock_slightly_behind_reads_are_stale(window: Window, now: int, age: int) -> None:
    field = window_field(window, window.span(now).index - age)
    assert stale([field], now) == ([field] if age > 2 else [])


@given(st.lists(windows, unique=True), moments)
def test_what_is_current_is_never_stale(some: list[Window], now: int) -> None:
    fields = [window_field(window, window.span(now).index) for window in some] + [bucket_field(w) for w in some]
    assert stale([*fields, *current_totals(now)], now) == []
    assert len(set(fields)) == len(fields)


def test_totals_are_kept_their_days_and_months() -> None:
    now = datetime(2026, 11, 21, 12, tzinfo=UTC)
    moment = round(now.timestamp()) * SECOND
    days = [day_field((now - timedelta(days=age)).date()) for age in range(DAYS_KEPT + 2)]
    months = [f"u{year}{month:02}" for year in (25, 26) for month in range(1, 13)]
    assert stale(days, moment) == days[DAYS_KEPT:]
    assert sorted(set(months) - set(stale(months, moment)))[0] == "u2511"
    assert MONTHS_KEPT == 13
