"""`Books`: everything that is counted in this process, also by parts that have gone since: a counter never falls."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TypeAlias

from ratelimit.metrics.families import Family, Sample

Source: TypeAlias = Callable[[], Iterable[Family]]
_Labels: TypeAlias = tuple[tuple[str, str], ...]


class Books:
    """Sources by a key of the caller's. Of a gauge that several have, the one that came last counts."""

    def __init__(self) -> None:
        self._sources: dict[Hashable, Source] = {}
        self._past: list[Family] = []

    def keep(self, key: Hashable, source: Source) -> None:
        """Read this one too; harmless where it is read already."""
        self._sources.setdefault(key, source)

    def retire(self, key: Hashable) -> None:
        """Read it a last time. Its counters stay, its gauges go."""
        source = self._sources.pop(key, None)
        if source is not None:
            counted = [family for family in source() if family.kind != "gauge"]
            self._past = _merged([*self._past, *counted])

    def families(self) -> list[Family]:
        """All of it."""
        return _merged([*self._past, *(family for source in self._sources.values() for family in source())])


def _merged(families: Iterable[Family]) -> list[Family]:
    found: dict[str, tuple[Family, dict[tuple[str, _Labels], Sample]]] = {}
    for family in families:
        _, samples = found.setdefault(family.name, (family, {}))
        for sample in family.samples:
            place = sample.suffix, tuple(sorted(sample.labels.items()))
            before = samples.get(place)
            if before is None or family.kind == "gauge":
                samples[place] = sample
            else:
                samples[place] = Sample(before.value + sample.value, sample.labels, sample.suffix)
    return [Family(family.name, family.help, family.kind, list(samples.values())) for family, samples in found.values()]
