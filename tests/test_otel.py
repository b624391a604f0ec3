"""Spans of checks, where somebody collects them; nothing at all where nobody does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ratelimit.clock import SystemClock
from ratelimit.config import load_config
from ratelimit.factory import build_limiter
from ratelimit.otel import TraceContext, spans
from ratelimit.testing import FakeClock

POLICIES: dict[str, dict[str, object]] = {
    "hint": {"quotas": "1/day", "match": ["POST /hints"]},
    "free": {"quotas": "unlimited"},
}
CONFIG = load_config(env={}, policies=POLICIES)
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """A provider of this test's own: the global one can be set only once."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    yield exporter
    provider.shutdown()


async def test_one_span_for_each_check(exporter: InMemorySpanExporter) -> None:
    clock = FakeClock()
    limiter = build_limiter(CONFIG, clock=clock)
    for _ in range(2):
        await limiter.check("alice", "hint")
    await limiter.check("alice", "free")
    allowed, denied, free = exporter.get_finished_spans()
    assert {span.name for span in (allowed, denied, free)} == {"ratelimit.check"}
    assert dict(allowed.attributes or {}) == {
        "ratelimit.policy": "hint", "ratelimit.allowed": True, "ratelimit.cost": 1, "ratelimit.remaining": 0,
    }  # fmt: skip
    assert (denied.attributes or {})["ratelimit.allowed"] is False
    assert (denied.attributes or {})["ratelimit.reason"] == "quota"
    assert "ratelimit.remaining" not in (free.attributes or {})
    assert allowed.start_time == allowed.end_time == clock.now() * 1000
    assert "alice" not in str([span.to_json() for span in (allowed, denied, free)])


async def test_a_span_lasts_as_long_as_its_check(exporter: InMemorySpanExporter) -> None:
    clock = FakeClock()
    observe = spans(clock)
    assert observe is not None
    decision = await build_limiter(CONFIG, clock=clock).check("alice", "hint")
    exporter.clear()
    observe(decision, 0.25)
    (span,) = exporter.get_finished_spans()
    assert (span.start_time, span.end_time) == (clock.now() * 1000 - 250_000_000, clock.now() * 1000)


async def test_it_is_below_the_span_that_is_current(exporter: InMemorySpanExporter) -> None:
    limiter = build_limiter(CONFIG)
    with trace.get_tracer_provider().get_tracer("test").start_as_current_span("view"):
        await limiter.check("alice", "hint")
    check, view = exporter.get_finished_spans()
    assert check.parent is not None
    assert view.context is not None
    assert check.parent.span_id == view.context.span_id


async def test_it_joins_the_trace_of_the_client(exporter: InMemorySpanExporter) -> None:
    limiter = build_limiter(CONFIG)
    context = TraceContext.current()
    assert context is not None
    for headers in ([(b"traceparent", CALLER.encode())], []):
        with context.joined(headers):
            await limiter.check("alice", "hint")
    joined, alone = exporter.get_finished_spans()
    assert joined.context is not None
    assert joined.parent is not None
    assert f"{joined.context.trace_id:032x}" == CALLER.split("-")[1]
    assert f"{joined.parent.span_id:016x}" == CALLER.split("-")[2]
    assert alone.parent is None


async def test_nothing_where_nobody_collects() -> None:
    assert build_limiter(CONFIG).observer is None
    assert TraceContext.current() is None


def test_nothing_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "opentelemetry.trace")
    assert spans(SystemClock()) is None


@pytest.mark.process
def test_nobody_imports_it_for_us() -> None:
    code = (
        "import sys, ratelimit; ratelimit.configure(policies=[ratelimit.Policy('hint', '5/day')]); "
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
