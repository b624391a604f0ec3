"""OpenTelemetry: a span for each check, and its instruments, where its API is installed and a provider has been set up.

Set the provider up before the limiter is made from its configuration. Where there is none, nothing of OpenTelemetry is
imported, and a check pays nothing. No span names a user. The instruments read the same families as a scraper, under
names with a dot: `ratelimit.decisions`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from ratelimit.clock import Clock
from ratelimit.decision import Decision
from ratelimit.limiter import Limiter
from ratelimit.limiter.checker import Observer
from ratelimit.metrics import BUCKETS, CHECK_SECONDS, CHECK_SECONDS_HELP, Registry, Sample, add_observer, watch

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation
    from opentelemetry.trace import Tracer

    from ratelimit import sync
    from ratelimit.usage import UsageLog


def spans(clock: Clock) -> Observer | None:
    """Return what makes a span of each decision, below the current one; None where nobody collects them."""
    tracer = _tracer()
    if tracer is None:
        return None

    def observe(decision: Decision, span: float) -> None:
        end = clock.now() * 1000
        start = end - round(span * 1e9)
        tracer.start_span("ratelimit.check", attributes=_attributes(decision), start_time=start).end(end)

    return observe


class TraceContext:
    """For requests that nobody else has traced: their checks join the trace that the client is in."""

    def __init__(self) -> None:
        from opentelemetry import context, propagate

        self._context = context
        self._propagate = propagate

    @classmethod
    def current(cls) -> TraceContext | None:
        return None if _tracer() is None else cls()

    @contextmanager
    def joined(self, headers: Iterable[tuple[bytes, bytes]]) -> Iterator[None]:
        """Be in the trace that a request's headers tell of. Tasks that begin within stay in it."""
        fields = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
        token = self._context.attach(self._propagate.extract(fields))
        try:
            yield
        finally:
            self._context.detach(token)


def _tracer() -> Tracer | None:
    # Who has set a provider up has imported this.
    if "opentelemetry.trace" not in sys.modules:
        return None
    from opentelemetry import trace

    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        return None
    return provider.get_tracer("ratelimit")


def _attributes(decision: Decision) -> dict[str, str | int | bool]:
    found: dict[str, str | int | bool] = {
        "ratelimit.policy": decision.policy,
        "ratelimit.allowed": decision.allowed,
        "ratelimit.cost": decision.cost,
    }
    if decision.remaining is not None:
        found["ratelimit.remaining"] = decision.remaining
    if decision.reason is not None:
        found["ratelimit.reason"] = decision.reason
    if decision.shadow_denied:
        found["ratelimit.shadow_denied"] = True
    return found


class Instruments:
    """Observable instruments that read a registry's families, one each, and a histogram of how long checks take.

    A histogram cannot be observed: that one is told of each check, which costs some 7 µs with its SDK.
    """

    def __init__(self, registry: Registry, meter: Meter) -> None:
        self._registry = registry
        self._meter = meter
        self._callbacks: dict[str, Callable[[CallbackOptions], Iterable[Observation]]] = {}
        self._unread: dict[str, list[Sample]] = {}
        spans = meter.create_histogram(
            _dotted(CHECK_SECONDS), "s", CHECK_SECONDS_HELP, explicit_bucket_boundaries_advisory=BUCKETS
        )
        self._record = spans.record

    @classmethod
    def of(cls, registry: Registry) -> Instruments | None:
        """Return those of a registry; None where nobody collects metrics."""
        provider = _meter_provider()
        return None if provider is None else cls(registry, provider.get_meter("ratelimit"))

    def add_families(self) -> None:
        """Make an instrument of each family that has come since."""
        for name, documentation, kind, _ in self._registry.collect():
            if name in self._callbacks or kind == "histogram" or not name.startswith("ratelimit_"):
                continue
            self._callbacks[name] = callback = self._callback(name)
            create: Any = self._meter.create_observable_gauge
            if kind == "counter":
                create = self._meter.create_observable_counter
            create(_dotted(name), [callback], description=documentation)

    def observe(self, decision: Decision, span: float) -> None:
        self._record(span)

    def _callback(self, name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        from opentelemetry.metrics import Observation

        def observe(options: CallbackOptions) -> Iterable[Observation]:
            # Whoever collects calls all of them, one after the other: the first reads for all.
            if name not in self._unread:
                self._unread = {family.name: family.samples for family in self._registry.collect()}
            return [Observation(value, labels) for _, labels, value in self._unread.pop(name, [])]

        return observe


def expose(limiter: Limiter | sync.Limiter, *, usage: UsageLog | sync.UsageLog | None = None) -> None:
    """Show a limiter's metrics to OpenTelemetry: those of its store and directory, and of `usage`.

    As `ratelimit.prometheus.expose` does it; without a provider, nothing. What a configuration describes needs no call.
    """
    provider = _meter_provider()
    if provider is None:
        return
    if (found := _exposed.get(provider)) is None:
        families = Registry()
        found = _exposed[provider] = families, Instruments(families, provider.get_meter("ratelimit"))
    families, instruments = found
    core = watch(families, limiter, usage)
    if core is not None:
        add_observer(core, instruments.observe)
    instruments.add_families()


def _meter_provider() -> MeterProvider | None:
    # Who has set a provider up has imported this.
    if "opentelemetry.metrics" not in sys.modules:
        return None
    from opentelemetry import metrics

    provider = metrics.get_meter_provider()
    # The stand-in for one that may come later is not public.
    is_real = not isinstance(provider, metrics.NoOpMeterProvider) and "Proxy" not in type(provider).__name__
    return provider if is_real else None


def _dotted(name: str) -> str:
    return name.replace("_", ".", 1)


_exposed: Final[dict[MeterProvider, tuple[Registry, Instruments]]] = {}
