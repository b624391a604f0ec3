"""Quotas: the text people write, the windows they mean, and what is refused with a hint."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit.clock import SECOND
from ratelimit.errors import ConfigError, InvalidQuota
from ratelimit.quota import MAX_LIMIT, UNITS, UNLIMITED, Quota, Window, parse_quotas, to_quotas


def at(year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0) -> int:
    return round(datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp()) * SECOND


@pytest.mark.parametrize(
    ("text", "quotas"),
    [
        ("5/day", (Quota(5, "day"),)),
        ("5 per day", (Quota(5, "day"),)),
        (" 5 / Day ", (Quota(5, "day"),)),
        ("10 per 5 minutes", (Quota(10, "5 minutes"),)),
        ("10/5minutes", (Quota(10, "5 minutes"),)),
        ("1 PER 2 HOURS", (Quota(1, "2 hours"),)),
        ("10/s", (Quota(10, "second"),)),
        ("10/min", (Quota(10, "minute"),)),
        ("10 per 5 secs; 20 per 5 mins", (Quota(10, "5 seconds"), Quota(20, "5 minutes"))),
        ("10/2hrs; 20/2mos; 30/2yrs", (Quota(10, "2 hours"), Quota(20, "2 months"), Quota(30, "2 years"))),
        ("100/hour; 1000/day", (Quota(100, "hour"), Quota(1000, "day"))),
        ("100/hour, 1000/day", (Quota(100, "hour"), Quota(1000, "day"))),
        ("100/hour|1000/day", (Quota(100, "hour"), Quota(1000, "day"))),
        ("3/week", (Quota(3, "week"),)),
        ("3/months", (Quota(3, "month"),)),
        ("3 per year", (Quota(3, "year"),)),
        ("10/second burst 20", (Quota(10, "second", burst=20),)),
        ("0/day", (Quota(0, "day"),)),
        ("unlimited", UNLIMITED),
        ("-1", UNLIMITED),
        (" Unlimited ", UNLIMITED),
    ],
)
def test_reads_what_people_write(text: str, quotas: tuple[Quota, ...]) -> None:
    assert parse_quotas(text) == quotas
    assert to_quotas(text) == quotas


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("5/fortnight", "unknown unit 'fortnight'; use one of second, minute"),
        ("5/dya", "did you mean 'day'"),
        ("5/500ms", "unknown unit 'ms'; use one of second, minute"),
        ("5/ms burst 3", "unknown unit 'ms'; use one of second, minute"),
        ("5/ds", "unknown unit 'ds'; use one of second, minute"),
        ("5 per 2 hs", "unknown unit 'hs'; use one of second, minute"),
        ("5/dayss", "did you mean 'day'"),
        ("1/0 days", "at least 1 day"),
        ("", "write '5/day'"),
        ("5", "write '5/day'"),
        ("/day", "write '5/day'"),
        ("5/day;", "write '5/day'"),
        ("five/day", "write '5/day'"),
        ("1.5/day", "write '5/day'"),
        ("5/day 6/hour", "write '5/day'"),
        ("-5/day", "between 0 and"),
        ("-1/day", "write 'unlimited'"),
        ("5/day; unlimited", "'unlimited' stands alone"),
        ("5/day; 6/day", "two quotas per day"),
        ("5/20 years", "longer than the 10 years"),
        (f"{MAX_LIMIT + 1}/day", "between 0 and"),
        ("5/day burst 0", "burst must be between 1"),
        (f"{'9' * 5000}/day", "a number of 5000 digits is too large"),
        (f"5/{'9' * 5000} days", "a number of 5000 digits is too large"),
        (f"5/day burst {'9' * 5000}", "a number of 5000 digits is too large"),
    ],
)
def test_nonsense_is_refused_with_a_hint(text: str, hint: str) -> None:
    with pytest.raises(InvalidQuota, match=hint):
        parse_quotas(text)


@pytest.mark.parametrize(
    ("window", "hint"),
    [
        (60, "not int; write '60 seconds'"),
        (0, "write 'day'"),
        (True, "write 'day'"),
        pytest.param(10**5000, "write 'day'", id="huge"),
        (1.5, "not float; write 'day' or '5 minutes'"),
        (None, "write 'day'"),
    ],
)
def test_a_window_without_a_unit_is_refused_with_a_hint(window: Any, hint: str) -> None:
    with pytest.raises(InvalidQuota, match=hint):
        Quota(5, window)


def test_a_number_that_cannot_even_be_printed_is_refused_like_any_other() -> None:
    for make in (to_quotas, lambda number: Quota(number, "day")):
        with pytest.raises(InvalidQuota, match=f"{MAX_LIMIT}"):
            make(10**5000)


@pytest.mark.parametrize("value", [[], (), True, False, 5, 0, 1.5, None, object()])
def test_nothing_becomes_unlimited_by_accident(value: object) -> None:
    with pytest.raises(InvalidQuota):
        to_quotas(value)  # type: ignore[arg-type]


def test_lists_say_which_entry_is_wrong() -> None:
    with pytest.raises(ConfigError, match=r"^\[1\]: unknown unit 'fortnight'"):
        to_quotas(["5/day", "6/fortnight"])


def test_minus_one_is_unlimited() -> None:
    assert to_quotas(-1) is UNLIMITED
    assert to_quotas(UNLIMITED) is UNLIMITED


@given(st.integers(0, MAX_LIMIT), st.integers(1, 9), st.sampled_from(UNITS), st.none() | st.integers(1, MAX_LIMIT))
def test_text_form_round_trips(limit: int, count: int, unit: str, burst: int | None) -> None:
    quota = Quota(limit, f"{count} {unit}", burst)
    assert Quota.parse(str(quota)) == quota


@pytest.mark.parametrize(
    ("window", "moment", "start", "end"),
    [
        ("day", at(2026, 11, 21, 23, 59, 59), at(2026, 11, 21), at(2026, 11, 22)),
        ("week", at(2026, 11, 21, 3), at(2026, 11, 16), at(2026, 11, 23)),  # Monday to Monday
        ("month", at(2024, 2, 29, 12), at(2024, 2, 1), at(2024, 3, 1)),
        ("3 months", at(2026, 11, 21), at(2026, 10, 1), at(2027, 1, 1)),
        ("year", at(2026, 12, 31, 23), at(2026, 1, 1), at(2027, 1, 1)),
        ("10 minutes", at(2026, 1, 1, 0, 19, 59), at(2026, 1, 1, 0, 10), at(2026, 1, 1, 0, 20)),
    ],
)
def test_windows_follow_the_utc_calendar(window: str, moment: int, start: int, end: int) -> None:
    span = Window.parse(window).span(moment)
    assert (span.start, span.end) == (start, end)


@given(st.integers(1, 20), st.sampled_from(UNITS), st.integers(0, at(2200, 1, 1)))
def test_windows_tile_time(count: int, unit: str, moment: int) -> None:
    window = Window.parse(f"{min(count, 9) if unit == 'year' else count} {unit}")
    span = window.span(moment)
    assert span.start <= moment < span.end
    assert span.end - span.start <= window.longest
    following = window.span(span.end)
    assert (following.index, following.start) == (span.index + 1, span.end)
