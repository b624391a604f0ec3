"""From what a service has consumed to a month."""

from __future__ import annotations

from fractions import Fraction

import pytest

from ratelimit.cost.metrics import read_metrics
from ratelimit.cost.units import Workload
from ratelimit.errors import ConfigError
from tests.cost.metrics_text import STARTED, text, worker

HOUR = 3600.0
STORED = Workload(checks=0, users=1000)


def test_an_hour_becomes_730() -> None:
    found = read_metrics(text(worker(allowed=1000, denied=200, cached=150, logged=70)), STARTED + HOUR, STORED)
    assert (found.seconds, found.is_measured) == (HOUR, False)
    assert (found.checks, found.denied) == (1200 * 730, 200 * 730)
    assert found.units.checks == 1000 * 730
    assert found.units.refused == 50 * 730
    assert found.units.events == 70 * 730
    assert found.units.reads == 30 * 730
    assert found.units.writes == (1000 + 50 + 70) * 730
    assert found.units.spared == {"denial cache": 150 * 730, "leases": 0, "coalescing": 0}
    assert found.units.state_gb > 0
    assert found.units.event_gb > 0


def test_each_worker_by_its_own_age() -> None:
    both = text(
        worker(allowed=1000, denied=0, cached=0), worker(allowed=1000, denied=0, cached=0, started=STARTED + HOUR / 2)
    )
    assert read_metrics(both, STARTED + HOUR, STORED).units.checks == (1000 + 2000) * 730


@pytest.mark.parametrize(("reported", "checks", "refused"), [(1070, 1000, 50), (2070, 2000, 0)])
def test_units_that_dynamodb_counted_go_over_calls(reported: int, checks: int, refused: int) -> None:
    """It reports what was written, the events among it. The calls beyond were refused: billed, and not reported."""
    families = worker(allowed=1000, denied=200, cached=150, logged=70, write_units=reported)
    found = read_metrics(text(families), STARTED + HOUR, STORED)
    assert found.is_measured
    assert (found.units.checks, found.units.refused, found.units.events) == (checks * 730, refused * 730, 70 * 730)


def test_events_on_a_timeline_are_no_checks() -> None:
    families = worker(allowed=1000, denied=0, cached=0, logged=70, indexed=40, write_units=1110)
    units = read_metrics(text(families), STARTED + HOUR, STORED).units
    assert (units.checks, units.events, units.timelines) == (1000 * 730, 70 * 730, 40 * 730)
    assert units.writes == 1110 * 730


def test_refusals_that_shared_a_write_are_not_counted_twice() -> None:
    families = worker(allowed=0, denied=10, cached=0)
    calls = text(families).replace('operation="UpdateItem",worker="1"} 10.0', 'operation="UpdateItem",worker="1"} 4.0')
    assert read_metrics(calls, STARTED + HOUR, STORED).units.writes == 4 * 730


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("", "is it `ratelimit serve`'s"),
        ("# TYPE up gauge\nup 1\n", "is it `ratelimit serve`'s"),
        ("<html>nothing here</html>", "is not Prometheus' text|is it `ratelimit serve`'s"),
        ('x{a="b 1\n', "is not Prometheus' text"),
    ],
)
def test_an_answer_of_something_else(body: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        read_metrics(body, STARTED, STORED)


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf", "1e300", "-1.0"])
@pytest.mark.parametrize("name", ["process_start_time_seconds", "ratelimit_usage_written_total"])
def test_a_sample_that_is_no_number_is_named(name: str, value: str) -> None:
    lines = text(worker(allowed=1000, denied=200, cached=150, logged=70)).splitlines(keepends=True)
    broken = [f"{line.rpartition(' ')[0]} {value}\n" if line.startswith(name) else line for line in lines]
    with pytest.raises(ConfigError, match=f"^from-metrics: {name} is .*: neither a count nor a time"):
        read_metrics("".join(broken), STARTED + HOUR, STORED)


def test_a_start_in_the_future() -> None:
    with pytest.raises(ConfigError, match="the clocks differ"):
        read_metrics(text(worker(allowed=1, denied=0, cached=0)), STARTED - 1, STORED)


def test_a_share_of_a_month_is_exact() -> None:
    found = read_metrics(text(worker(allowed=3, denied=0, cached=0)), STARTED + 7, STORED)
    assert found.checks == Fraction(3 * 730 * 3600, 7)
