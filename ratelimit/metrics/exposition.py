"""Families as the text that Prometheus scrapes, of one worker or of several. Needs the extra `sidecar`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ratelimit.metrics.families import Family, Kind, Sample


def exposition(workers: Mapping[str, Sequence[Family]], accept: str) -> tuple[bytes, str]:
    """The body and its content type, as the scraper asked for it (`Accept`): the text format or OpenMetrics.

    By worker, which becomes a label of every sample.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Workers(workers))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def process_families() -> list[Family]:
    """This process's memory, CPU time and open files, where the platform tells (`process_…`)."""
    found: list[Family] = []
    for metric in ProcessCollector(registry=None).collect():
        kind: Kind = "counter" if metric.type == "counter" else "gauge"
        samples = [Sample(s.value, dict(s.labels), s.name.removeprefix(metric.name)) for s in metric.samples]
        found.append(Family(metric.name, metric.documentation, kind, samples))
    return found


class _Workers(Collector):
    """A registry of its own for each scrape: nothing is global, and nothing is left over."""

    def __init__(self, workers: Mapping[str, Sequence[Family]]) -> None:
        self._workers = workers

    def collect(self) -> Iterator[Metric]:
        metrics: dict[str, Metric] = {}
        for worker, families in self._workers.items():
            for family in families:
                metric = metrics.setdefault(family.name, Metric(family.name, family.help, family.kind))
                for sample in family.samples:
                    metric.add_sample(family.name + sample.suffix, {"worker": worker, **sample.labels}, sample.value)
        yield from metrics.values()
