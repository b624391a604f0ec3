"""For prometheus_client: what a worker answers to a scraper, and an app's limiters in the app's own registry.

Its multi-process mode is not used. That mode counts in files of its own, by process id and with a lock, while the parts
here count in plain attributes, and the workers of a sidecar are told apart by small numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from prometheus_client import REGISTRY, CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from ratelimit.limiter import Limiter
from ratelimit.metrics import Family, Registry, Sample, names_of, watch

if TYPE_CHECKING:
    from ratelimit import sync
    from ratelimit.usage import UsageLog


def exposition(workers: Mapping[str, Iterable[Family]], accept: str) -> tuple[bytes, str]:
    """Return the body and its content type, as the scraper asked for it (`Accept`): the text format or OpenMetrics.

    The worker becomes a label of every sample.
    """
    found: dict[str, Family] = {}
    for worker, families in workers.items():
        for family in families:
            samples = [sample._replace(labels={"worker": worker, **sample.labels}) for sample in family.samples]
            found.setdefault(family.name, family._replace(samples=[])).samples.extend(samples)
    encode, content_type = choose_encoder(accept)
    return encode(_Families(found.values)), content_type


def process_families() -> list[Family]:
    """Return the process's own, on Linux: memory, CPU, open files."""
    return [
        Family(metric.name, metric.documentation, metric.type, [Sample(*sample[:3]) for sample in metric.samples])
        for metric in ProcessCollector(registry=None).collect()
    ]


def expose(
    limiter: Limiter | sync.Limiter,
    *,
    usage: UsageLog | sync.UsageLog | None = None,
    registry: CollectorRegistry = REGISTRY,
) -> None:
    """Show a limiter's metrics in a registry of prometheus_client: those of its store and directory, and of `usage`.

    What was checked before anything looked is not among them. Raises `ValueError`, and does nothing, where the registry
    has one of their names from somebody else. Harmless where it is done already. It keeps nothing
    alive: when the limiter goes, its gauges go with it, and its counters stay as they were last read.
    """
    if (families := _exposed.get(registry)) is None:
        families = Registry()
        registry.register(_Families(families.collect, names_of(limiter, usage)))
        _exposed[registry] = families
    watch(families, limiter, usage)


class _Families(Collector):
    def __init__(self, read: Callable[[], Iterable[Family]], named: Iterable[Family] = ()) -> None:
        self._read = read
        self._named = [family._replace(samples=[]) for family in named]

    def describe(self) -> Iterator[Metric]:
        """Say what names it takes, before there is anything to read."""
        return _metrics(self._named)

    def collect(self) -> Iterator[Metric]:
        return _metrics(self._read())


def _metrics(families: Iterable[Family]) -> Iterator[Metric]:
    for name, documentation, kind, samples in families:
        metric = Metric(name, documentation, kind)
        for sample in samples:
            metric.add_sample(*sample)
        yield metric


_exposed: Final[WeakKeyDictionary[CollectorRegistry, Registry]] = WeakKeyDictionary()
