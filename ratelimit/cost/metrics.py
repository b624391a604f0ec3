"""From life: what a running service has consumed since it started, read from its metrics, as a month would be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, NamedTuple

from ratelimit.cost.units import HOURS, Units, Workload, event_gb, state_gb
from ratelimit.errors import ConfigError

_STARTED: Final = "process_start_time_seconds"
_CALLS: Final = "ratelimit_store_calls_total"
_THROTTLES: Final = "ratelimit_store_throttles_total"
_UNITS: Final = "ratelimit_store_units_total"
_DECISIONS: Final = "ratelimit_decisions_total"
_WRITTEN: Final = "ratelimit_usage_written_total"
_INDEXED: Final = "ratelimit_usage_indexed_total"
_SPARED: Final = {
    "denial cache": "ratelimit_denials_cached_total",
    "leases": "ratelimit_checks_leased_total",
    "coalescing": "ratelimit_checks_coalesced_total",
}
_CHECKS: Final = "UpdateItem"
# A page of a query is taken for one unit: 8 KB, read eventually consistent.
_READS: Final = ("GetItem", "BatchGetItem", "Query", "Scan")
# Below this, a minute more or less decides what the month looks like.
SHORTEST: Final = 600.0
_MOST: Final = 1e15


class Scraped(NamedTuple):
    """A sample of a metric, as one reads it: its name is Prometheus'."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumption:
    """What all workers together consume in a month, if it goes on like this."""

    seconds: float
    """How long the worker that is oldest has run."""
    checks: Fraction
    """Asked for."""
    denied: Fraction
    """Of them."""
    is_measured: bool
    """Whether DynamoDB itself counted the units; otherwise a call is taken for one."""
    units: Units


def read_metrics(text: str, now: float, workload: Workload) -> Consumption:
    """Read `text` in Prometheus' format, at `now`, in seconds since the epoch; `workload` says what is stored.

    Needs the extra `sidecar`. Raise `ConfigError` where the text does not hold what is needed.
    """
    samples = list(_samples(text))
    ages = {_worker(s): now - _value(s) for s in samples if s.name == _STARTED}
    if not ages or not any(s.name == _CALLS for s in samples):
        needed = f"{_STARTED} and {_CALLS}"
        raise ConfigError("from-metrics", f"the answer lacks {needed}: is it `ratelimit serve`'s, on DynamoDB?")
    if min(ages.values()) <= 0:
        raise ConfigError("from-metrics", "a process has started in the future: the clocks differ")
    return consumption(samples, ages, workload)


def consumption(samples: Iterable[Scraped], ages: Mapping[str, float], workload: Workload) -> Consumption:
    """Return what these samples come to in a month; `ages` are the seconds that each worker has counted for."""
    return _Month(list(samples), ages).consumption(workload)


class _Month:
    """Sums over workers, each worker's counters scaled from its own age to a month."""

    def __init__(self, samples: list[Scraped], ages: Mapping[str, float]) -> None:
        self._samples = samples
        self._ages = ages

    def sum(self, name: str, **labels: str | tuple[str, ...]) -> Fraction:
        """Sum up all samples of this name whose labels are (one of) these."""
        found = Fraction(0)
        wanted = {label: value if isinstance(value, tuple) else (value,) for label, value in labels.items()}
        for sample in self._samples:
            if sample.name == name and all(sample.labels.get(label) in values for label, values in wanted.items()):
                age = self._ages.get(_worker(sample))
                found += Fraction(_value(sample)) * HOURS * 3600 / Fraction(age) if age else 0
        return found

    def consumption(self, workload: Workload) -> Consumption:
        denied = self.sum(_DECISIONS, outcome="denied", reason="quota")
        spared = {name: self.sum(metric) for name, metric in _SPARED.items()}
        events = self.sum(_WRITTEN)
        measured = self.sum(_UNITS, kind="write")
        calls = max(Fraction(0), self.sum(_CALLS, operation=_CHECKS) - self.sum(_THROTTLES))
        # DynamoDB bills a write that it refused, and reports no units for it: those are the calls that are left over.
        timelines = self.sum(_INDEXED)
        admitted = max(Fraction(0), measured - events - timelines)
        refused = max(Fraction(0), calls - admitted)
        if not measured:
            refused = min(calls, max(Fraction(0), denied - spared["denial cache"]))
            admitted = calls - refused
        return Consumption(
            seconds=max(self._ages.values()),
            checks=self.sum(_DECISIONS),
            denied=denied,
            is_measured=bool(measured),
            units=Units(
                checks=admitted,
                refused=refused,
                events=events,
                timelines=timelines,
                reads=self.sum(_UNITS, kind="read") or self.sum(_CALLS, operation=_READS),
                state_gb=state_gb(workload),
                event_gb=event_gb(events + timelines, workload),
                spared=spared,
            ),
        )


def _samples(text: str) -> Iterator[Scraped]:
    try:
        from prometheus_client.parser import text_string_to_metric_families
    except ImportError:
        raise ConfigError("from-metrics", "needs the extra: pip install 'ratelimit-dynamodb[sidecar]'") from None
    try:
        for family in text_string_to_metric_families(text):
            yield from (Scraped(*sample[:3]) for sample in family.samples)
    except (ValueError, IndexError, KeyError) as error:
        raise ConfigError("from-metrics", f"the answer is not Prometheus' text: {error}") from None


def _value(sample: Scraped) -> float:
    """Return a count or a time: Prometheus has room for NaN and infinities, which say nothing."""
    if not 0 <= sample.value <= _MOST:
        raise ConfigError("from-metrics", f"{sample.name} is {sample.value:g}: neither a count nor a time")
    return sample.value


def _worker(sample: Scraped) -> str:
    return str(sample.labels.get("worker", ""))
