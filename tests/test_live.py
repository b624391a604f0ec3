"""The last minutes: what the samples of one process say, and of several together."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from fractions import Fraction
from typing import Any

import msgspec
import pytest

from ratelimit import live
from ratelimit.cost.estimate import load_prices
from ratelimit.cost.units import HOURS
from ratelimit.decision import Decision, Reason
from ratelimit.live import (
    INTERVAL_S,
    MAX_SAMPLED_POLICIES,
    MAX_SHOWN,
    LiveRecorder,
    Recording,
)
from ratelimit.metrics import DecisionMetrics, Registry, by_label, counter


class Time:
    """What the monotonic clock of the machine shows."""

    tick = 0


@pytest.fixture(autouse=True)
def time_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "monotonic", lambda: (Time.tick + 0.5) * INTERVAL_S)


class Process:
    """One that counts in the interval after `tick`, until the test says that it is another one."""

    def __init__(self, policies: list[str] | None = None, *, tick: int = 0) -> None:
        self.tick = Time.tick = tick
        self.decisions = DecisionMetrics(policies or ["hint", "run"])
        self.calls = {"UpdateItem": 0.0, "GetItem": 0.0, "DescribeTable": 1.0}
        self.units = {"write": 0.0, "read": 0.0}
        self.throttles = self.events = 0
        registry = Registry()
        registry.register("store", self._metrics)
        registry.register("decisions", self.decisions.collect)
        self.recorder = LiveRecorder(0, self.decisions, registry)
        self.observe = self.recorder.observer(self.decisions, counts_writes=True)

    def _metrics(self) -> list[Any]:
        found = [
            by_label("ratelimit_store_calls", "", "operation", self.calls),
            counter("ratelimit_store_throttles", "", self.throttles),
            counter("ratelimit_usage_written", "", self.events),
        ]
        return (
            [*found, by_label("ratelimit_store_units", "", "kind", self.units)] if any(self.units.values()) else found
        )

    def check(
        self, times: int = 1, policy: str = "hint", *, user: str = "alice", allowed: bool = True,
        reason: Reason | None = None, shadow_denied: bool = False, span: float = 0.0003,
    ) -> None:  # fmt: skip
        decision = Decision(
            allowed=allowed, policy=policy, cost=1, quotas=(), reason=reason, shadow_denied=shadow_denied, user=user,
            spent=int(allowed and not shadow_denied and reason is None),
        )  # fmt: skip
        Time.tick = self.tick
        for _ in range(times):
            self.observe(decision, span)

    def sample(self, tick: int) -> None:
        """Let it be that interval, and somebody look."""
        self.tick = Time.tick = tick
        self.recorder.read()

    def read(self) -> Recording:
        """As another worker would get it."""
        Time.tick = self.tick
        return msgspec.json.decode(msgspec.json.encode(self.recorder.read()), type=Recording)


def per_second(*counts: float | None) -> list[float | None]:
    return [None if count is None else round(count / INTERVAL_S, 2) for count in counts]


def test_what_came_in_each_interval() -> None:
    one = Process(tick=6)
    one.check(10)
    one.check(3, allowed=False, reason="quota")
    one.sample(7)
    one.check(5, "run", shadow_denied=True, reason="quota")
    one.sample(7)  # which is not over
    one.check(2, "run", reason="unavailable")
    one.check(1, "run", allowed=False, reason="unavailable")
    one.calls["UpdateItem"], one.calls["GetItem"], one.throttles = 20, 4, 2
    one.sample(8)
    found = live.document([one.read()])
    series = found["series"]
    assert series["allowed"] == per_second(10, 0)
    assert series["denied"] == per_second(3, 0)
    assert series["shadow_denied"] == per_second(0, 5)
    assert series["unavailable"] == per_second(0, 3)
    assert (series["writes"], series["reads"], series["throttles"]) == (
        per_second(0, 20), per_second(0, 4), per_second(0, 2)
    )  # fmt: skip
    assert (found["units"], found["interval_s"]) == ("calls", INTERVAL_S)
    assert found["totals"] == {"allowed": 10, "denied": 3, "shadow_denied": 5, "unavailable": 3}
    assert [policy["name"] for policy in found["policies"]] == ["hint", "run"], "the busiest first; nobody asked others"
    assert found["policies"][1]["totals"] == {"allowed": 0, "denied": 0, "shadow_denied": 5, "unavailable": 3}
    assert found["policies"][1]["series"]["shadow_denied"] == per_second(0, 5)


def test_how_long_checks_took() -> None:
    one = Process()
    one.sample(1)
    one.check(98, span=0.0003)  # between 0.1 and 0.5 ms
    one.check(2, span=0.03)  # between 25 and 50 ms
    one.sample(2)
    one.check(1, span=7)
    one.sample(3)
    series = live.document([one.read()])["series"]
    assert series["p50_ms"] == [None, pytest.approx(0.1 + 0.4 * 50 / 98, abs=0.001), 1000]
    assert series["p99_ms"] == [None, pytest.approx(25 + 25 * 0.5), 1000]


def test_what_came_while_nobody_looked_is_of_its_interval() -> None:
    one = Process()
    one.sample(1)
    one.check(30)
    one.tick = 4
    one.check(3)
    one.sample(5)
    assert live.document([one.read()])["series"]["allowed"] == per_second(0, 30, 0, 0, 3)


def test_workers_together() -> None:
    one, other = Process(tick=4), Process(tick=4)
    one.check(10)
    one.sample(5)
    one.check(1)
    one.sample(7)
    other.check(20, user="bob", allowed=False, reason="quota")
    other.sample(5)
    one.sample(8)
    other.sample(8)
    one.sample(9)  # and the other one not yet
    found = live.document([one.read(), other.read()])
    assert found["series"]["allowed"] == per_second(10, 1, 0, 0)
    assert found["series"]["denied"] == per_second(20, 0, 0, 0)
    assert found["totals"]["denied"] == 20
    assert [(key.user, key.count, key.error) for key in found["refused"]] == [("bob", 20, 0)]
    assert [(key.user, key.count, key.error) for key in found["hot"]] == [("alice", 11, 0)]


def test_a_worker_that_came_later_leaves_no_hole() -> None:
    one = Process()
    for tick in (1, 2, 3):
        one.check(5)
        one.sample(tick)
    other = Process(tick=2)
    other.check(5)
    other.sample(3)
    assert live.document([one.read(), other.read()])["series"]["allowed"] == per_second(5, 5, 10)
    assert live.document([Process().read()])["series"]["allowed"] == []


def test_keys_are_those_of_the_last_two_periods() -> None:
    one = Process()
    one.check(2, user="long ago", allowed=False, reason="quota")
    for tick in range(1, live.KEY_PERIOD + 1):
        one.sample(tick)
    one.check(1, user="before", allowed=False, reason="quota")
    found = live.document([one.read()])
    assert [key.user for key in found["refused"]] == ["long ago", "before"]
    assert found["keys_window_s"] == live.KEY_PERIOD * INTERVAL_S
    for tick in range(live.KEY_PERIOD + 1, 2 * live.KEY_PERIOD + 11):
        one.sample(tick)
    found = live.document([one.read()])
    assert [key.user for key in found["refused"]] == ["before"]
    assert found["keys_window_s"] == (live.KEY_PERIOD + 10) * INTERVAL_S


@pytest.mark.heavy
def test_ten_thousand_policies_and_hours_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MAX_SAMPLES", 20)
    names = [f"policy {number}" for number in range(10_000)]
    one = Process(names)
    for tick in range(1, 41):
        one.check(3, names[tick])
        one.sample(tick)
    for name in names[100:300]:
        one.check(1, name)
    one.sample(41)
    recording = one.read()
    assert len(recording.samples) == 20
    assert len(recording.samples[-1].policies) == MAX_SAMPLED_POLICIES
    found = live.document([recording])
    assert found["series"]["allowed"][-1] == pytest.approx(200 / INTERVAL_S), "all are counted"
    assert len(found["policies"]) == MAX_SHOWN
    assert found["policies_left_out"] == 10_000 - MAX_SHOWN
    unknown = [policy["name"] for policy in found["policies"] if policy["series"]["allowed"][-1] is None]
    assert set(unknown) == set(names[22:41])
    assert not set(unknown) & recording.samples[-1].policies.keys(), "they are among the others, if they are at all"
    assert len(msgspec.json.encode(found)) < 500_000


def test_what_it_costs() -> None:
    one, prices = Process(), load_prices("eu-west-1")
    assert live.cost({"0": one.read()}, prices) is None, "it has recorded nothing"
    one.sample(1)
    one.check(900)
    one.check(100, allowed=False, reason="quota")
    one.calls["UpdateItem"], one.units["write"], one.units["read"], one.events = 1000, 950.0, 10.0, 50
    one.sample(2)
    found = live.cost({"0": one.read(), "1": one.read()}, prices)
    assert found is not None
    month = HOURS * 3600 / 10
    units = {line["cause"]: line["units"] for line in found["month"]}
    assert units == {
        "checks": round(2 * 900 * month), "refused checks": round(2 * 100 * month),
        "usage log": round(2 * 50 * month), "timelines": 0, "reads": round(2 * 10 * month),
    }  # fmt: skip
    assert (found["seconds"], found["measured"], found["region"]) == (10, True, "eu-west-1")
    assert (found["so_far"]["writes"], found["so_far"]["reads"]) == (2100, 20)
    dollars = sum((line["dollars"] for line in found["month"]), Decimal(0))
    assert abs(found["total"] - dollars) < Decimal("0.03")
    expected = Fraction(sum(list(units.values())[:3])) * prices.write_million + units["reads"] * prices.read_million
    assert abs(Fraction(found["total"]) - expected / 10**6) < Fraction(1, 50)
    assert found["as_of"] >= date(2026, 1, 1)


def test_what_is_counted_in_memory_costs_nothing() -> None:
    one = Process()
    one.calls.clear()
    one.check()
    one.sample(1)
    assert live.cost({"0": one.read()}, load_prices()) is None
    assert live.document([one.read()])["units"] is None
