"""What a run leaves behind as JSON: `report.json`, which the page, the CSV and a comparison are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from .plan import Group, Trouble

FORMAT: Final = 1


class Quantiles(msgspec.Struct, frozen=True):
    """Milliseconds."""

    p50: float
    p90: float
    p99: float
    p999: float
    most: float
    mean: float


class ConfidenceInterval(msgspec.Struct, frozen=True):
    """An estimate, and where it lies in 95 of 100 resamplings of the run's seconds."""

    value: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether it is told apart from nothing."""
        return not self.low <= 0 <= self.high


class SeriesResult(msgspec.Struct, frozen=True):
    """One kind of request, as measured; the warm-up is left out."""

    name: str
    over: str | None
    count: int
    refused: int
    failed: int
    latency: Quantiles | None
    """From the intended start to the answer, by Locust's clock. None where there was no answer."""
    service: Quantiles | None
    """From the sending to the answer; for a check, the check alone, by the clock of its own process."""
    samples: list[list[int]]
    """Latencies in µs, by the second in which they were intended."""


class Added(msgspec.Struct, frozen=True):
    """By how much a series takes longer than the one without what is measured: milliseconds."""

    series: str
    over: str
    p50: ConfidenceInterval
    p99: ConfidenceInterval


class Meter(msgspec.Struct, frozen=True):
    """What the checks of one limiter wrote, warm-up included."""

    name: str
    checks: int
    writes: int
    """`UpdateItem` requests, refused ones included."""
    units: float
    """Write units: as reported by the store, at least one for each of those."""
    users: int = 0
    """Who were checked: the first check of each may take a second write."""

    @property
    def per_check(self) -> float:
        return self.units / self.checks if self.checks else 0.0


class KeptRate(msgspec.Struct, frozen=True):
    """Whether the intended rate was kept, and who was late."""

    asked: float
    sent: float
    """Requests a second that went out while measuring."""
    unsent: int
    """Intended, and never made."""
    waited_p99: float
    """Milliseconds until a user was free."""
    lag_p99: float
    """Milliseconds that the generator itself was late."""

    seconds: float
    """That it was measured over."""

    @property
    def off(self) -> float:
        """Share by which the rate was missed. A run's edges part it from its neighbours, so a request is none."""
        missed = abs(self.sent - self.asked) * self.seconds
        return max(0.0, missed - 1) / (self.asked * self.seconds) if self.seconds else 0.0

    @property
    def kept(self) -> bool:
        return self.off <= 0.02


class Exactness(msgspec.Struct, frozen=True):
    """The books of a group, compared by user and action."""

    admitted: int
    counted: int
    """In the totals of the table."""
    logged: int
    """In the events of the log."""
    unknown: int
    """Requests without an answer: each may have been counted, and logged, or not."""
    differences: list[str]
    """The first ten that even those do not explain."""

    @property
    def holds(self) -> bool:
        return not self.differences


class GroupResult(msgspec.Struct, frozen=True):
    """One group of series."""

    group: Group
    users: int
    seconds: float
    """That were measured: fewer than asked where the run was cut short."""
    complete: bool
    pace: KeptRate
    series: list[SeriesResult]
    added: list[Added]
    meters: list[Meter]
    event_units: float | None
    """Write units per event in the log; None on the embedded store."""
    exactness: Exactness
    sent: list[int]
    """Requests by the second in which they went out."""
    answered: list[int]
    """And those answered, by the second of the answer."""
    failed: list[int]

    @property
    def count(self) -> int:
        return sum(each.count for each in self.series)

    @property
    def error_rate(self) -> float:
        return sum(each.failed for each in self.series) / self.count if self.count else 0.0


class BudgetVerdict(msgspec.Struct, frozen=True):
    """A budget, and what was measured."""

    budget: str
    measured: float
    at_most: float
    unit: str = ""

    @property
    def holds(self) -> bool:
        return self.measured <= self.at_most


class Report(msgspec.Struct, frozen=True):
    """One run."""

    format: int
    run: str
    place: str
    """Where it counted: an engine's name, `memory`, or `dynamodb`."""
    command: str
    date: str
    complete: bool
    """False where it was cut short: what is here is what there was until then."""
    environment: dict[str, str]
    groups: list[GroupResult]
    verdicts: list[BudgetVerdict]
    notes: list[str]

    @property
    def holds(self) -> bool:
        return all(verdict.holds for verdict in self.verdicts)


def read_report(file: Path) -> Report:
    try:
        report = msgspec.json.decode(file.read_bytes(), type=Report)
    except OSError as error:
        raise Trouble(f"{file}: {error.strerror or error}") from error
    except msgspec.DecodeError as error:
        raise Trouble(f"{file} is no report of a load test: {error}") from error
    if report.format != FORMAT:
        raise Trouble(f"{file} has format {report.format}, and this version reads {FORMAT}")
    return report
