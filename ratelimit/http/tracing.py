"""Spans of OpenTelemetry, one for each check, where its API is installed and a provider has been set up.

Set the provider up before the limiter is made from its configuration. Where there is none, nothing here is imported by
anybody, and a check pays nothing. No span names a user.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from ratelimit.clock import Clock
from ratelimit.decision import Decision
from ratelimit.limiter.checker import Observer

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

NAME: Final = "ratelimit.check"


def spans(clock: Clock) -> Observer | None:
    """Return what makes a span of each decision, below the current one; None where nobody collects them."""
    tracer = _tracer()
    if tracer is None:
        return None

    def observe(decision: Decision, span: float) -> None:
        end = clock.now() * 1000
        start = end - round(span * 1e9)
        tracer.start_span(NAME, attributes=_attributes(decision), start_time=start).end(end)

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
