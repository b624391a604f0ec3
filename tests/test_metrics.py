"""What is counted, and how it reads to a scraper."""

from __future__ import annotations

import collections
import re
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import get_args

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as plain_text

from ratelimit import Decision, Limiter, MemoryStore, Policy, load_config
from ratelimit.decision import Reason
from ratelimit.directory import DirectoryStats
from ratelimit.dynamodb import DynamoDBStore
from ratelimit.dynamodb.calls import Stats
from ratelimit.metrics import (
    DecisionMetrics,
    Family,
    Registry,
    counter,
    decode,
    directory_metrics,
    dynamodb_metrics,
    encode,
    envoy_metrics,
    gauge,
    limiter_metrics,
    memory_metrics,
    mirror_metrics,
    region_metrics,
    store_metrics,
    sum_metrics,
    table_store,
    usage_metrics,
    webhook_metrics,
)
from ratelimit.names import Key
from ratelimit.prometheus import exposition, process_families
from ratelimit.regions.home import HomeStore
from ratelimit.regions.sum import SumStore
from ratelimit.server.factory import sidecar
from ratelimit.store import MirrorStore
from ratelimit.store.hashed import HashedUserStore
from ratelimit.store.mirror import MirrorStats
from ratelimit.usage.settings import UsageStats

OPEN_METRICS = "application/openmetrics-text; version=1.0.0"


def decision(
    policy: str = "hint", *, allowed: bool = True, reason: Reason | None = None, shadow_denied: bool = False
) -> Decision:
    return Decision(allowed=allowed, policy=policy, cost=1, quotas=(), reason=reason, shadow_denied=shadow_denied)


def decisions(metrics: DecisionMetrics) -> dict[tuple[str, str, str], float]:
    metric = metrics.collect()[0]
    return {(s.labels["policy"], s.labels["outcome"], s.labels["reason"]): s.value for s in metric.samples}


def every_metric() -> list[Family]:
    limiter = Limiter(MemoryStore(), [Policy("hint", "5/day")])
    stats = Stats(
        collections.Counter(UpdateItem=3),
        write_units=3.0,
        fallbacks=collections.Counter(proxy=1),
        dropped=collections.Counter(idle=2),
    )
    metrics = DecisionMetrics(limiter.policies)
    metrics(decision(), 0.0003)
    return [
        *metrics.collect(), *limiter_metrics(limiter), *memory_metrics(MemoryStore()), *dynamodb_metrics(stats),
        *usage_metrics(UsageStats()), *mirror_metrics(MirrorStats()), *directory_metrics(DirectoryStats()),
        *region_metrics({"eu-west-1": 2, "us-east-1": 1}), *sum_metrics(SumStore({"one": MemoryStore()}, "one")),
        *webhook_metrics(3, 1), *envoy_metrics({("edge", "ok"): 2}), *process_families(),
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
    metrics.add_policies(["run", "hint"])
    metrics(decision("run"), 0.001)
    assert decisions(metrics)["hint", "allowed", "none"] == decisions(metrics)["run", "allowed", "none"] == 1


def test_how_long_checks_took() -> None:
    metrics = DecisionMetrics()
    for span in (0.00005, 0.0001, 0.0002, 0.3, 7):
        metrics(decision(), span)
    samples = metrics.collect()[1].samples
    buckets = {sample.labels["le"]: sample.value for sample in samples if sample.name.endswith("_bucket")}
    assert (buckets["0.0001"], buckets["0.0005"], buckets["0.25"], buckets["0.5"], buckets["+Inf"]) == (2, 3, 3, 4, 5)
    assert {s.name: s.value for s in samples if not s.labels} == {
        "ratelimit_check_seconds_count": 5,
        "ratelimit_check_seconds_sum": pytest.approx(7.30035),
    }


def test_a_counter_never_falls_and_gauges_add_up() -> None:
    registry = Registry()
    registry.register("first", lambda: [counter("calls", "", 3), gauge("open", "", 1)])
    registry.register("second", lambda: [counter("calls", "", 4), gauge("open", "", 2)])
    assert {metric.name: metric.samples[0].value for metric in registry.collect()} == {"calls": 7, "open": 3}
    registry.retire("second")
    registry.retire("second")
    registry.retire("never kept")
    assert {metric.name: metric.samples[0].value for metric in registry.collect()} == {"calls": 7, "open": 1}
    registry.retire("first")
    assert {metric.name: metric.samples[0].value for metric in registry.collect()} == {"calls": 7}


def test_one_source_is_counted_once() -> None:
    registry = Registry()
    for _ in range(2):
        registry.register("one", lambda: [counter("calls", "", 3)])
    assert registry.collect()[0].samples[0].value == 3


def test_workers_tell_one_another_all_of_it() -> None:
    metrics = every_metric()
    assert decode(encode(metrics)) == metrics


def test_scrapers_of_both_kinds_read_it() -> None:
    workers = {"0": every_metric(), "1": every_metric()}
    body, content_type = exposition(workers, "text/plain")
    assert content_type.startswith("text/plain; version=0.0.4")
    plain = {metric.name for metric in plain_text(body.decode())}
    body, content_type = exposition(workers, OPEN_METRICS)
    assert content_type.startswith("application/openmetrics-text")
    found = {metric.name: metric for metric in open_metrics(body.decode())}
    assert len(found) == len(plain) == len({metric.name for metric in every_metric()})
    assert {sample.labels["worker"] for metric in found.values() for sample in metric.samples} == {"0", "1"}


@pytest.mark.parametrize(
    ("prefix", "stats"), [("ratelimit_usage_", UsageStats), ("ratelimit_directory_", DirectoryStats)]
)
def test_no_number_is_forgotten(prefix: str, stats: type) -> None:
    shown = {metric.name.removeprefix(prefix) for metric in every_metric() if metric.name.startswith(prefix)}
    assert shown == {field.name for field in fields(stats)}


def test_names_and_help_are_as_prometheus_wants_them() -> None:
    for metric in every_metric():
        assert metric.name.startswith(("ratelimit_", "process_"))
        assert not metric.name.endswith(("_total", "_count", "_bucket"))
        assert metric.documentation
        if metric.type == "counter":
            assert {sample.name for sample in metric.samples} <= {f"{metric.name}_total"}


def test_the_reference_names_every_metric_and_no_other() -> None:
    text = (Path(__file__).parents[1] / "docs" / "operations.md").read_text(encoding="utf-8")
    table = text.partition("## Metrics")[2].partition("## Alarms")[0]
    told = set(re.findall(r"`((?:ratelimit|process)_\w+)`", table))
    assert told == as_scraped()
    (reasons,) = [line for line in table.splitlines() if "`reason` is" in line]
    assert set(get_args(Reason)) <= set(re.findall(r"`(\w+)`", reasons))


def test_what_to_do_when_speaks_of_metrics_that_there_are() -> None:
    text = (Path(__file__).parents[1] / "docs" / "operations.md").read_text(encoding="utf-8")
    advice = text.partition("## What to do when")[2].partition("## Traces")[0]
    spoken_of = set(re.findall(r"ratelimit_\w+", advice))
    assert spoken_of
    assert spoken_of <= as_scraped()


def test_a_store_is_seen_through_what_is_around_it() -> None:
    store = DynamoDBStore(table="limits", region="eu-west-1")
    for around in (store, MirrorStore(store, MemoryStore()), HashedUserStore(MirrorStore(store, MemoryStore()), "s")):
        assert table_store(around) is store
    assert table_store(HashedUserStore(MemoryStore(), "s")) is None


def of_the_sidecar() -> list[Family]:
    """Those that a worker adds."""
    one = sidecar(partial(load_config, env={}))
    return [gauge("ratelimit_up", "", 1), *one.registry.collect()]


def as_scraped() -> set[str]:
    """What all of them are called by who scrapes them."""
    metrics = [*every_metric(), *of_the_sidecar()]
    return {f"{metric.name}_total" if metric.type == "counter" else metric.name for metric in metrics}


async def test_what_crosses_to_other_regions_is_told() -> None:
    store = HomeStore({region: MemoryStore() for region in ("eu-west-1", "us-east-1")}, "eu-west-1")
    for number in range(40):
        await store.read(Key(f"user-{number}", "hint"))
    (family,) = [family for family in store_metrics(store) if family.name == "ratelimit_region_requests"]
    counted = {sample.labels["region"]: sample.value for sample in family.samples}
    assert counted == store.asked
    assert sum(counted.values()) == 40
    assert min(counted.values()) > 5
