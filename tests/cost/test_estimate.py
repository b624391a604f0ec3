"""An estimate: exact where it is simple, and sensible everywhere."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit.cost.estimate import Estimate, estimate, load_prices
from ratelimit.cost.units import Units, Workload, units_of
from ratelimit.errors import ConfigError

PRICES = load_prices()
MILLION = 10**6

shares = st.integers(0, 100).map(lambda percent: Fraction(percent, 100))
workloads = st.builds(
    Workload,
    checks=st.integers(0, 10**10),
    denied=shares,
    users=st.integers(0, 10**7),
    actions=st.integers(1, 20),
    windows=st.integers(1, 5),
    logged=st.none() | st.integers(0, 10**10),
    log=st.sampled_from(["all", "allowed", "denied", "none"]),
    log_sample=shares,
    timeline=shares,
    days_kept=st.integers(0, 400),
    event_bytes=st.integers(1, 5000),
    reads=st.integers(0, 10**10),
    repeated=shares,
    coalesced=shares,
    leased=shares,
    lease=st.integers(1, 1000),
    second=shares,
    tasks=st.integers(0, 50),
)


def of(workload: Workload, **terms: Any) -> Estimate:
    terms = {"peak": Fraction(3), "utilisation": Fraction(7, 10)} | terms
    return estimate(units_of(workload), workload, PRICES, **terms)


def lines(workload: Workload) -> dict[str, Decimal]:
    return {line.name: line.dollars for line in of(workload).lines}


def test_a_million_checks_cost_a_million_write_units() -> None:
    found = lines(Workload(checks=MILLION, second=Fraction(0)))
    assert found["writes: checks"] == Decimal("0.63")  # 0.625, to the cent
    assert sum(found.values()) == Decimal("0.63")


def test_an_event_on_a_timeline_is_written_and_kept_twice() -> None:
    plain = Workload(checks=0, logged=10 * MILLION)
    found, both = of(plain), of(replace(plain, timeline=Fraction(1)))
    assert lines(replace(plain, timeline=Fraction(1)))["writes: timelines"] == lines(plain)["writes: usage log"]
    assert abs(both.total - 2 * found.total) <= Decimal("0.02")
    saved = {saving.name: saving.dollars for saving in both.savings}
    assert abs(saved["timeline = false"] - found.total) <= Decimal("0.02")


def test_refused_checks_cost_as_much_unless_the_denial_cache_knew() -> None:
    plain = Workload(checks=10 * MILLION, denied=Fraction(1, 5), second=Fraction(0), repeated=Fraction(0))
    assert lines(plain)["writes: checks"] == Decimal("5.00")
    assert lines(plain)["writes: refused checks"] == Decimal("1.25")
    assert lines(replace(plain, repeated=Fraction(3, 5)))["writes: refused checks"] == Decimal("0.50")
    assert lines(replace(plain, repeated=Fraction(1)))["writes: refused checks"] == Decimal("0.00")


def test_leases_and_coalescing_spare_writes() -> None:
    plain = Workload(checks=100 * MILLION, second=Fraction(0))
    assert units_of(plain).writes == 100 * MILLION
    assert units_of(replace(plain, leased=Fraction(1), lease=100)).writes == MILLION
    assert units_of(replace(plain, coalesced=Fraction(3, 4))).writes == 25 * MILLION


@pytest.mark.parametrize(
    ("log", "sample", "events"),
    [("none", 1, 0), ("all", 1, 10), ("allowed", 1, 8), ("denied", 1, 2), ("all", Fraction(1, 2), 9)],
)
def test_the_log_keeps_what_a_policy_says(log: Any, sample: Fraction, events: int) -> None:
    workload = Workload(checks=10, denied=Fraction(1, 5), log=log, log_sample=Fraction(sample))
    assert workload.events == events
    assert replace(workload, logged=7).events == 7


def test_an_event_of_more_than_a_kilobyte_takes_more_units() -> None:
    assert [units_of(Workload(checks=0, logged=10, event_bytes=size)).events for size in (1, 1024, 1025)] == [
        10,
        10,
        20,
    ]


def test_storage_holds_what_is_kept() -> None:
    """A month's events three times over, for 91.25 days; and the counters."""
    workload = Workload(checks=0, logged=2**30, event_bytes=924, days_kept=0)
    units = units_of(replace(workload, days_kept=365))
    assert units.event_gb == 12 * 1024
    assert units_of(replace(workload, users=2**30, actions=2, windows=1)).state_gb == 2 * 820


def test_the_sidecar_costs_by_the_task() -> None:
    found = lines(Workload(checks=0, tasks=2, vcpu=Fraction(1), memory=Fraction(2)))
    assert found["Fargate"] == Decimal("72.08")  # 2 * 730 h * (0.04048 + 2 * 0.004445)
    assert found["load balancer"] == Decimal("16.43")  # 730 h * 0.0225
    assert lines(Workload(checks=0))["load balancer"] == 0


def test_provisioned_units_cover_the_average_or_the_peak() -> None:
    workload = Workload(checks=100 * 730 * 3600, second=Fraction(0))  # 100 a second
    found = of(workload, peak=Fraction(4), utilisation=Fraction(1, 2)).throughput
    assert (found.auto_scaled.write, found.fixed.write) == (200, 400)
    assert found.fixed.dollars == 730 * (400 * PRICES.write_hour + PRICES.read_hour)
    assert found.on_demand == Fraction(workload.checks) * PRICES.write_million / MILLION


@pytest.mark.parametrize(
    ("terms", "name"), [({"peak": Fraction(1, 2)}, "peak"), ({"utilisation": Fraction(0)}, "util")]
)
def test_terms_that_cannot_be(terms: dict[str, Fraction], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        of(Workload(checks=1), **terms)


@pytest.mark.parametrize(
    ("numbers", "name"),
    [({"lease": 0}, "lease"), ({"denied": Fraction(2)}, "denied"), ({"users": -1}, "users"), ({"log": "some"}, "log")],
)
def test_numbers_that_cannot_be(numbers: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: "):
        Workload(checks=1, **numbers)


@given(workloads)
def test_the_lines_sum_to_the_total(workload: Workload) -> None:
    found = of(workload)
    assert found.total == sum((line.dollars for line in found.lines), Decimal(0))
    assert all(line.dollars >= 0 for line in found.lines)
    assert all(saving.dollars >= 0 for saving in found.savings)


@pytest.mark.parametrize(
    "name", ["checks", "users", "actions", "windows", "logged", "days_kept", "event_bytes", "reads", "tasks", "second"]
)
@given(workload=workloads, more=st.integers(1, 1000))
def test_more_never_costs_less(name: str, workload: Workload, more: int) -> None:
    before: Any = getattr(workload, name) or 0
    after: Any = min(Fraction(1), before + Fraction(more, 1000)) if name == "second" else before + more
    changes: list[dict[str, Any]] = [{name: before}, {name: after}]
    less, greater = (of(replace(workload, **change)).total for change in changes)
    assert less <= greater


@pytest.mark.parametrize("name", ["repeated", "coalesced", "leased", "lease"])
@given(workload=workloads, more=st.integers(1, 100))
def test_what_spares_writes_never_costs_more(name: str, workload: Workload, more: int) -> None:
    before = getattr(workload, name)
    after = before + more if name == "lease" else min(Fraction(1), before + Fraction(more, 100))
    assert of(workload).total >= of(replace(workload, **{name: after})).total


@given(workload=workloads)
def test_refusals_lie_between_none_and_all(workload: Workload) -> None:
    """A refusal may cost more than an admission or less, but in proportion: no share is dearer than both ends."""
    none, every = (of(replace(workload, denied=Fraction(share))).total for share in (0, 1))
    cents = Decimal("0.08")  # eight lines, each rounded
    assert min(none, every) - cents <= of(workload).total <= max(none, every) + cents


LOGS: list[tuple[str, dict[str, Any]]] = [
    ('log = "allowed"', {"log": "allowed"}),
    ("log_sample = 0.1", {"log_sample": Fraction(1, 10)}),
]


@pytest.mark.parametrize(("name", "change"), LOGS)
@given(workload=workloads)
def test_a_smaller_log_saves_what_the_bill_with_it_says(name: str, change: dict[str, Any], workload: Workload) -> None:
    said = {saving.name: saving.dollars for saving in of(workload).savings}.get(name, Decimal(0))
    saved = of(workload).total - of(replace(workload, **change)).total
    assert abs(max(Decimal(0), saved) - said) <= Decimal("0.04")  # three lines on either bill, each rounded


def test_of_a_log_that_was_counted_the_shares_are_told() -> None:
    """Events from a service's metrics: nobody said how many checks there are."""
    workload = Workload(checks=0, denied=Fraction(1, 5), log="all")
    found = estimate(Units(events=Fraction(10 * MILLION)), workload, PRICES, peak=Fraction(3), utilisation=Fraction(1))
    savings = {saving.name: saving.dollars for saving in found.savings}
    assert savings == {'log = "none"': Decimal("6.25"), 'log = "allowed"': Decimal("1.25"), LOGS[1][0]: Decimal("1.13")}


@given(workload=workloads)
def test_what_a_saving_says_is_what_the_bill_would_be_without_it(workload: Workload) -> None:
    savings = {saving.name: saving.dollars for saving in of(workload).savings}
    without = of(replace(workload, repeated=Fraction(0))).total
    assert abs(without - of(workload).total - savings["denial cache"]) <= Decimal("0.02")
    logless = of(replace(workload, logged=0)).total
    assert abs(of(workload).total - logless - savings.get('log = "none"', Decimal(0))) <= Decimal("0.03")
