"""What was used: by day and by month, of the same record, whatever else is in it."""

from __future__ import annotations

from datetime import UTC, date, datetime

from ratelimit.algorithms import Totals
from ratelimit.algorithms.totals import totals_of
from ratelimit.clock import SECOND
from ratelimit.store import Add

RECORD = {"d20758": 9, "gd": 7, "u261231": 5, "u2612": 12, "u270101": 2, "u270131": 1, "u2701": 3, "u261030": 7}
OCTOBER, DECEMBER, JANUARY = date(2026, 10, 30), date(2026, 12, 31), date(2027, 1, 1)


def test_the_last_day_before_the_epoch_is_a_day_like_any_other() -> None:
    assert Totals().add(-SECOND, 2) == (Add("u691231", 2), Add("u6912", 2))


def test_days_and_months_are_told_apart() -> None:
    assert totals_of(RECORD) == {OCTOBER: 7, DECEMBER: 5, JANUARY: 2, date(2027, 1, 31): 1}
    assert totals_of(RECORD, "month") == {date(2026, 12, 1): 12, JANUARY: 3}
    assert list(totals_of(RECORD)) == sorted(totals_of(RECORD))


def test_the_bounds_are_included_and_so_is_the_month_that_one_lies_in() -> None:
    assert totals_of(RECORD, since=DECEMBER, until=JANUARY) == {DECEMBER: 5, JANUARY: 2}
    assert totals_of(RECORD, "month", since=date(2026, 12, 1), until=DECEMBER) == {date(2026, 12, 1): 12}


def test_a_unit_is_counted_into_the_utc_day_and_its_month() -> None:
    one, last = Totals(), round(datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()) * SECOND
    assert one.add(last, 2) == (Add("u261231", 2), Add("u2612", 2))
    assert one.add(last + SECOND, 2) == (Add("u270101", 2), Add("u2701", 2))
