"""What is counted, and how it reads to a scraper."""

from __future__ import annotations

import re
from dataclasses import fields
from functools import partial
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as plain_text

from ratelimit.config import load_config
from ratelimit.decision import Decision, Reason
from ratelimit.directory import DirectoryStats
from ratelimit.dynamodb import DynamoDBStore
from ratelimit.dynamodb.stats import Stats
from ratelimit.factory import store_stats
from ratelimit.limiter import Limiter
from ratelimit.metrics import (
    DecisionMetrics,
    Family,
    Registry,
    counter,
    exposition,
    gauge,
    of_directory,
    of_limiter,
    of_memory,
    of_mirror,
    of_store,
    of_usage,
    of_webhook,
    process_families,
)
from ratelimit.policy import Policy
from ratelimit.server.factory import sidecar
from ratelimit.store import MemoryStore, MirrorStore
from ratelimit.store.hashed import HashedUserStore
from ratelimit.store.mirror import MirrorStats
from ratelimit.usage.options import UsageStats

OPEN_METRICS = "application/openmetrics-text; version=1.0.0"


def decision(
    policy: str = "hint", *, allowed: bool = True, reason: Reason | None = None, shadow_denied: bool = False
) -> Decision:
    return Decision(allowed=allowed, policy=policy, cost=1, quotas=(), reason=reason, shadow_denied=shadow_denied)


def decisions(metrics: DecisionMetrics) -> dict[tuple[str, str, str], float]:
    family = metrics.families()[0]
    return {(s.labels["policy"], s.labels["outcome"], s.labels["reason"]): s.value for s in family.samples}


def every_family() -> list[Family]:
    limiter = Limiter(MemoryStore(), [Policy("hint", "5/day")])
    stats = Stats(calls={"UpdateItem": 3}, write_units=3.0, fallbacks={"proxy": 1}, dropped={"idle": 2})
    metrics = DecisionMetrics(limiter.policies)
    metrics(decision(), 0.0003)
    return [
        *metrics.families(), *of_limiter(limiter), *of_memory(MemoryStore()), *of_store(stats), *of_usage(UsageStats()),
        *of_mirror(MirrorStats()), *of_directory(DirectoryStats()), *of_webhook(3, 1), *process_families(),
    ]  # fmt: skip


def test_decisions_by_policy_outcome_and_reason() -> None:
    metrics = DecisionMetrics(["hint"])
    assert decisions(metrics) == {("hint", "allowed", "none"): 0, ("hint", "denied", "quota"): 0}
    metrics(decision(), 0.001)
    metrics(decision(allowed=False, reason="quota"), 0.001)
    metrics(decision(reason="unavailable"), 0.001)
    metrics(decision(shadow_denied=True, reason="quota"), 0.001)
    assert decisions(metrics) == {
        ("hint", "allowed", "none"): 1,
        ("hint", "denied", "quota"): 1,
        ("hint", "allowed", "unavailable"): 1,
        ("hint", "shadow_denied", "quota"): 1,
    }


@pytest.mark.parametrize("named", [["hint"], ["hint", "other"]])
def test_actions_that_no_policy_names_are_one(named: list[str]) -> None:
    metrics = DecisionMetrics(named)
    for number in range(1000):
        metrics(decision(f"made-up-{number}"), 0.001)
    found = decisions(metrics)
    assert found["other", "allowed", "none"] == 1000
    assert {policy for policy, _, _ in found} == {"hint", "other"}


def test_a_policy_that_comes_later_keeps_what_is_counted() -> None:
    metrics = DecisionMetrics(["hint"])
    metrics(decision(), 0.001)
    metrics.name(["run", "hint"])
    metrics(decision("run"), 0.001)
    assert decisions(metrics)["hint", "allowed", "none"] == decisions(metrics)["run", "allowed", "none"] == 1


def test_how_long_checks_took() -> None:
    metrics = DecisionMetrics()
    for span in (0.00005, 0.0001, 0.0002, 0.3, 7):
        metrics(decision(), span)
    samples = metrics.families()[1].samples
    buckets = {sample.labels["le"]: sample.value for sample in samples if sample.suffix == "_bucket"}
    assert (buckets["0.0001"], buckets["0.0005"], buckets["0.25"], buckets["0.5"], buckets["+Inf"]) == (2, 3, 3, 4, 5)
    assert {s.suffix: s.value for s in samples if not s.labels} == {"_count": 5, "_sum": pytest.approx(7.30035)}


def test_a_counter_never_falls_and_a_gauge_is_the_last_ones() -> None:
    registry = Registry()
    registry.keep("first", lambda: [counter("calls", "", 3), gauge("open", "", 1)])
    registry.keep("second", lambda: [counter("calls", "", 4), gauge("open", "", 0)])
    assert {family.name: family.samples[0].value for family in registry.families()} == {"calls": 7, "open": 0}
    registry.retire("second")
    registry.retire("second")
    registry.retire("never kept")
    assert {family.name: family.samples[0].value for family in registry.families()} == {"calls": 7, "open": 1}
    registry.retire("first")
    assert {family.name: family.samples[0].value for family in registry.families()} == {"calls": 7}


def test_one_source_is_counted_once() -> None:
    registry = Registry()
    for _ in range(2):
        registry.keep("one", lambda: [counter("calls", "", 3)])
    assert registry.families()[0].samples[0].value == 3


def test_scrapers_of_both_kinds_read_it() -> None:
    workers = {"0": every_family(), "1": every_family()}
    body, content_type = exposition(workers, "text/plain")
    assert content_type.startswith("text/plain; version=0.0.4")
    plain = {family.name for family in plain_text(body.decode())}
    body, content_type = exposition(workers, OPEN_METRICS)
    assert content_type.startswith("application/openmetrics-text")
    found = {family.name: family for family in open_metrics(body.decode())}
    assert len(found) == len(plain) == len({family.name for family in every_family()})
    assert {sample.labels["worker"] for family in found.values() for sample in family.samples} == {"0", "1"}


@pytest.mark.parametrize(
    ("prefix", "stats"), [("ratelimit_usage_", UsageStats), ("ratelimit_directory_", DirectoryStats)]
)
def test_no_number_is_forgotten(prefix: str, stats: type) -> None:
    shown = {family.name.removeprefix(prefix) for family in every_family() if family.name.startswith(prefix)}
    assert shown == {field.name for field in fields(stats)}


def test_names_and_help_are_as_prometheus_wants_them() -> None:
    for family in every_family():
        assert family.name.startswith(("ratelimit_", "process_"))
        assert not family.name.endswith(("_total", "_count", "_bucket"))
        assert family.help
        if family.kind == "counter":
            assert {sample.suffix for sample in family.samples} <= {"_total"}


def test_the_reference_names_every_metric_and_no_other() -> None:
    text = (Path(__file__).parents[1] / "docs" / "operations.md").read_text(encoding="utf-8")
    table = text.partition("## Metrics")[2].partition("## Alarms")[0]
    told = set(re.findall(r"`((?:ratelimit|process)_\w+)`", table))
    assert told == {_as_scraped(family) for family in [*every_family(), *of_the_sidecar()]}


def test_alarms_speak_of_metrics_that_there_are() -> None:
    text = (Path(__file__).parents[1] / "docs" / "operations.md").read_text(encoding="utf-8")
    alarms = text.partition("## Alarms")[2].partition("## Traces")[0]
    known = {_as_scraped(family) for family in [*every_family(), *of_the_sidecar()]}
    spoken_of = {name.removesuffix("_bucket") for name in re.findall(r"ratelimit_\w+", alarms)}
    assert spoken_of
    assert spoken_of <= known


def test_a_store_is_seen_through_what_is_around_it() -> None:
    store = DynamoDBStore(table="limits", region="eu-west-1")
    for around in (store, MirrorStore(store, MemoryStore()), HashedUserStore(MirrorStore(store, MemoryStore()), "s")):
        assert store_stats(around) is store.stats
    assert store_stats(HashedUserStore(MemoryStore(), "s")) is None


def of_the_sidecar() -> list[Family]:
    """Those that a worker adds."""
    one = sidecar(partial(load_config, env={}))
    return [gauge("ratelimit_up", "", 1), *one.registry.families()]


def _as_scraped(family: Family) -> str:
    return f"{family.name}_total" if family.kind == "counter" else family.name
