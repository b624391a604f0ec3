"""`Family`: one metric with all its samples, in Prometheus' data model, as a plain value that workers can exchange."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from msgspec import Struct

Kind: TypeAlias = Literal["counter", "gauge", "histogram"]


class Sample(Struct, frozen=True):
    """A number. `suffix` is what its name has beyond the family's: `_total`, `_bucket`, `_sum`, `_count`."""

    value: float
    labels: dict[str, str] = {}
    suffix: str = ""


class Family(Struct, frozen=True):
    """Its name has no `_total`: that is the samples'."""

    name: str
    help: str
    kind: Kind
    samples: list[Sample]


def counter(name: str, help: str, value: float) -> Family:
    """One that only grows, without labels."""
    return Family(name, help, "counter", [Sample(value, {}, "_total")])


def counters(name: str, help: str, label: str, values: Mapping[str, float]) -> Family:
    """One that only grows, by the values of one label."""
    return Family(name, help, "counter", [Sample(value, {label: key}, "_total") for key, value in values.items()])


def gauge(name: str, help: str, value: float, **labels: str) -> Family:
    """One that goes up and down."""
    return Family(name, help, "gauge", [Sample(value, labels)])
