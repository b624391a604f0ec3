"""An app's own metrics: in its registry of prometheus_client, and for OpenTelemetry, the same families in both."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from prometheus_client import REGISTRY, CollectorRegistry, Counter, generate_latest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from ratelimit import (
    Limiter,
    MemoryStore,
    Policy,
    RateLimitMiddleware,
    UsageLog,
    configure,
    otel,
    prometheus,
    sync,
    wsgi,
)
from ratelimit.config import load_config
from ratelimit.directory import Directory
from ratelimit.errors import ConfigError
from ratelimit.metrics import BUCKETS, Registry, watch
from ratelimit.prometheus import expose
from ratelimit.server.factory import sidecar
from ratelimit.testing import FakeClock
from tests.http.apps import client_of

HINT = Policy("hint", quotas="2/day", match="POST /hints")
ALLOWED = {"policy": "hint", "outcome": "allowed", "reason": "none"}
DENIED = {"policy": "hint", "outcome": "denied", "reason": "quota"}


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


async def test_a_limiter_and_its_parts_are_in_the_apps_registry() -> None:
    registry, store = CollectorRegistry(), MemoryStore()
    limiter = Limiter(store, [HINT], directory=Directory(store.directory))
    usage = UsageLog(store, actions=limiter.policies)
    expose(limiter, registry=registry)
    expose(limiter, usage=usage, registry=registry)
    for _ in range(3):
        await limiter.check("alice", "hint")
    await usage.record("alice", "hint")
    assert value(registry, "ratelimit_decisions_total", **ALLOWED) == 2
    assert value(registry, "ratelimit_decisions_total", **DENIED) == 1
    assert value(registry, "ratelimit_check_seconds_count") == 3
    assert value(registry, "ratelimit_store_records") == len(store) > 0
    assert value(registry, "ratelimit_breaker_state", state="closed") == 1
    assert value(registry, "ratelimit_directory_reads_total") == 1
    assert value(registry, "ratelimit_usage_accepted_total") == 1
    assert b"alice" not in generate_latest(registry)
    await usage.close()


async def test_limiters_add_up_and_one_that_has_gone_stays_counted() -> None:
    registry = CollectorRegistry()
    one, other = Limiter(MemoryStore(), [HINT]), Limiter(MemoryStore(), [HINT])
    for limiter in (one, other):
        expose(limiter, registry=registry)
        await limiter.check("alice", "hint")
    assert value(registry, "ratelimit_decisions_total", **ALLOWED) == 2
    assert value(registry, "ratelimit_breaker_state", state="closed") == 2
    assert value(registry, "ratelimit_store_records") == 2
    await one.check("bob", "hint")
    del one, other, limiter
    gc.collect()
    assert value(registry, "ratelimit_decisions_total", **ALLOWED) == 3
    assert value(registry, "ratelimit_denials_cached_total") == 0
    assert value(registry, "ratelimit_breaker_state", state="closed") is None


async def test_what_is_left_of_those_that_have_gone_does_not_grow() -> None:
    registry, families = CollectorRegistry(), Registry()
    for _ in range(2):
        limiter = Limiter(MemoryStore(), [HINT])
        expose(limiter, registry=registry)
        watch(families, limiter)
        await limiter.check("alice", "hint")
        del limiter
        gc.collect()
    assert [value(registry, "ratelimit_decisions_total", **ALLOWED) for _ in range(2)] == [2, 2]
    assert sum(family.name == "ratelimit_decisions" for family in families.collect()) == 1
    assert not families._sources


def test_a_blocking_limiter_too() -> None:
    registry = CollectorRegistry()
    with sync.Limiter(sync.open_store("memory://"), [HINT]) as limiter, sync.UsageLog(limiter.store) as usage:
        expose(limiter, usage=usage, registry=registry)
        for _ in range(3):
            limiter.check("alice", "hint")
        usage.record("alice", "hint")
        assert value(registry, "ratelimit_decisions_total", **DENIED) == 1
        assert value(registry, "ratelimit_store_records") == 1
        assert value(registry, "ratelimit_usage_accepted_total") == 1


@pytest.mark.parametrize("described", [False, True])
def test_a_name_that_the_app_has_itself_is_an_error_each_time(described: bool) -> None:
    """And nothing is counted for a registry that has none of it."""
    registry, limiter = CollectorRegistry(auto_describe=described), Limiter(MemoryStore(), [HINT])
    Counter("ratelimit_decisions", "The app's own.", registry=registry)
    for _ in range(2):
        with pytest.raises(ValueError, match="ratelimit_decisions"):
            expose(limiter, registry=registry)
    assert limiter.observer is None
    expose(limiter, registry=(other := CollectorRegistry()))
    assert asyncio.run(limiter.check("alice", "hint"))
    assert value(other, "ratelimit_decisions_total", **ALLOWED) == 1


@pytest.fixture
def own_registry() -> Iterator[CollectorRegistry]:
    """The process's own, in which nobody has exposed anything."""
    _forget()
    yield REGISTRY
    _forget()


def _forget() -> None:
    prometheus._exposed.pop(REGISTRY, None)
    for collector in list(REGISTRY._collector_to_names):
        if isinstance(collector, prometheus._Families):
            REGISTRY.unregister(collector)


async def test_a_setting_turns_it_on(own_registry: CollectorRegistry) -> None:
    app = Starlette(routes=[Route("/hints", lambda request: PlainTextResponse("a hint"), methods=["POST"])])
    app.add_middleware(RateLimitMiddleware, **configure(policies=[HINT], metrics=True))
    async with client_of(app) as client:
        assert [(await client.post("/hints")).status_code for _ in range(3)] == [200, 200, 429]
    assert value(own_registry, "ratelimit_decisions_total", **DENIED) == 1
    args = wsgi.configure(policies=[HINT], metrics=True)
    await asyncio.to_thread(args["limiter"].check, "alice", "hint")
    assert value(own_registry, "ratelimit_decisions_total", **ALLOWED) == 3
    configure(policies=[HINT])
    assert value(own_registry, "ratelimit_checks_leased_total") == 0


def test_without_prometheus_client_the_setting_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ratelimit.prometheus", None)
    with pytest.raises(ConfigError, match="metrics: needs prometheus_client: pip install prometheus-client"):
        configure(policies=[HINT], metrics=True)
    assert configure(policies=[HINT])["limiter"].observer is None


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemoryMetricReader]:
    """Of a provider of this test's own: the global one can be set only once."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr(metrics, "get_meter_provider", lambda: provider)
    yield reader
    provider.shutdown()


def points(reader: InMemoryMetricReader) -> dict[str, dict[tuple[tuple[str, Any], ...], Any]]:
    """What is read, by instrument and attributes."""
    data = reader.get_metrics_data()
    if data is None:
        return {}
    return {
        metric.name: {tuple(sorted((point.attributes or {}).items())): point for point in metric.data.data_points}
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


async def test_opentelemetry_reads_the_same_families(reader: InMemoryMetricReader) -> None:
    registry, clock = CollectorRegistry(), FakeClock()
    args = configure(policies=[HINT], usage="memory", clock=clock)
    limiter, usage = args["limiter"], args["usage"]
    expose(limiter, usage=usage, registry=registry)
    for _ in range(3):
        await limiter.check("alice", "hint")
    found = points(reader)
    scraped = {family.name: family for family in registry.collect()}
    assert {name.replace(".", "_") for name, each in found.items() if each} == {
        name for name, family in scraped.items() if family.samples
    }
    for name, by_attributes in found.items():
        for sample in scraped[name.replace(".", "_")].samples:
            if name != "ratelimit.check_seconds":
                assert by_attributes[tuple(sorted(sample.labels.items()))].value == sample.value
    (seconds,) = found["ratelimit.check_seconds"].values()
    assert isinstance(seconds, HistogramDataPoint)
    assert (seconds.count, tuple(seconds.explicit_bounds), seconds.sum) == (3, BUCKETS, 0)
    await limiter.check("alice", "hint")
    assert points(reader)["ratelimit.decisions"][tuple(sorted(DENIED.items()))].value == 2


async def test_opentelemetry_counts_up_and_knows_types(reader: InMemoryMetricReader) -> None:
    limiter = Limiter(MemoryStore(), [HINT])
    otel.expose(limiter)
    otel.expose(limiter)
    await limiter.check("alice", "hint")
    data = reader.get_metrics_data()
    assert data is not None
    (scope,) = data.resource_metrics[0].scope_metrics
    by_name = {metric.name: metric.data for metric in scope.metrics}
    assert getattr(by_name["ratelimit.decisions"], "is_monotonic", None) is True
    assert not hasattr(by_name["ratelimit.breaker_state"], "is_monotonic")
    assert by_name["ratelimit.decisions"].data_points[0].value == 1  # type: ignore[union-attr]
    assert "alice" not in data.to_json()


async def test_what_comes_later_brings_its_families(reader: InMemoryMetricReader) -> None:
    limiter, usage = Limiter(MemoryStore(), [HINT]), UsageLog(MemoryStore())
    otel.expose(limiter)
    assert "ratelimit.usage_accepted" not in points(reader)
    otel.expose(limiter, usage=usage)
    assert points(reader)["ratelimit.usage_accepted"][()].value == 0


async def test_the_sidecar_too(reader: InMemoryMetricReader) -> None:
    loaded = [load_config(env={}, policies=[HINT]), load_config(env={}, policies=[HINT], usage="memory")]
    service = sidecar(lambda: loaded[0])
    await service.start()
    await service.current.runtime.limiter.check("alice", "hint")
    found = points(reader)
    assert found["ratelimit.decisions"][tuple(sorted(ALLOWED.items()))].value == 1
    assert found["ratelimit.check_seconds"][()].count == 1
    assert "ratelimit.usage_accepted" not in found
    assert not [name for name in found if not name.startswith("ratelimit.")]
    del loaded[0]
    await service.reload()
    await service.current.runtime.limiter.check("bob", "hint")
    found = points(reader)
    assert found["ratelimit.decisions"][tuple(sorted(ALLOWED.items()))].value == 2
    assert found["ratelimit.check_seconds"][()].count == 2
    assert found["ratelimit.usage_accepted"][()].value == 0
    await service.end()


def test_nothing_where_nobody_collects(monkeypatch: pytest.MonkeyPatch) -> None:
    assert configure(policies=[HINT])["limiter"].observer is None
    monkeypatch.delitem(sys.modules, "opentelemetry.metrics")
    assert configure(policies=[HINT])["limiter"].observer is None
