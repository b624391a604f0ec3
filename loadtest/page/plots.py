"""What there is to see of a group: each plot as SVG, empty where there is nothing to show."""

from __future__ import annotations

from itertools import chain
from math import log10
from typing import Final

from loadtest.quantiles import quantile
from loadtest.result import GroupResult, SeriesResult
from loadtest.page.svg import Frame, Scale, decades, linear, logarithmic, ticks

_NINES: Final = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99)
_ROW: Final = 34
_LABELS: Final = 210


def style_of(index: int) -> str:
    """The colour of a series: the class that the page gives it."""
    return f"s{index % 8}"


def latency_plot(group: GroupResult) -> str:
    """Latency over the percentile, both stretched so that the slowest of a thousand can be read."""
    curves = [(index, series, _curve(series)) for index, series in enumerate(group.series) if series.latency]
    if not curves:
        return ""
    values = [ms for _, _, curve in curves for _, ms in curve]
    low, high = max(0.01, min(values) * 0.8), max(values) * 1.2
    last = max(percentile for _, _, curve in curves for percentile, _ in curve)
    frame = Frame(
        "latency", f"Latency by percentile of {group.group}", linear(0, _stretched(last)), logarithmic(low, high),
        [(_stretched(p), f"{p:g} %") for p in _NINES if p <= last], decades(low, high),
        "percentile", "milliseconds", height=320,
    )  # fmt: skip
    for index, series, curve in curves:
        frame.line(((_stretched(p), ms) for p, ms in curve), style_of(index), series.name)
    return frame.svg()


def added_plot(group: GroupResult) -> str:
    """What is added to the request without it, with the interval that the noise leaves."""
    rows = [(f"{added.series}, {part}", getattr(added, part)) for added in group.added for part in ("p50", "p99")]
    if not rows:
        return ""
    high = max(interval.high for _, interval in rows) * 1.15 or 1.0
    low = min(0.0, *(interval.low for _, interval in rows)) * 1.15
    frame = Frame(
        "added", "Added latency", linear(low, high), _rows(len(rows)), ticks(low, high),
        [(row, name) for row, (name, _) in enumerate(rows)],
        "milliseconds more, with the interval of 95 %", "", height=70 + _ROW * len(rows), left=_LABELS,
    )  # fmt: skip
    for row, (name, interval) in enumerate(rows):
        said = f"{name}: {interval.value:+.2f} ms, {interval.low:+.2f} to {interval.high:+.2f}"
        frame.bar((interval.low, row), (interval.high, row), "s1 faint", said, thick=8)
        frame.dot((interval.value, row), "s1", said)
        near_edge = interval.value > low + (high - low) * 0.8
        frame.text(
            (interval.value, row), f"{interval.value:+.2f}", dy=-8, dx=-8 if near_edge else 8,
            anchor="end" if near_edge else "start",
        )  # fmt: skip
    return frame.svg()


def throughput_plot(group: GroupResult) -> str:
    """Requests and answers, second by second, and the rate that was intended."""
    if not group.sent:
        return ""
    high = max(group.pace.asked, *group.sent, *group.answered) * 1.15
    frame = _over_time("throughput", "Throughput over time", group, high, "a second")
    end = len(group.sent)
    frame.line([(0, group.pace.asked), (end, group.pace.asked)], "intended", f"intended: {group.pace.asked:g} a second")
    frame.line(_steps(group.sent), "s1", "sent")
    frame.line(_steps(group.answered), "s0", "answered")
    return frame.svg()


def errors_plot(group: GroupResult) -> str:
    """Requests that failed, second by second."""
    if not group.failed:
        return ""
    total = sum(each.failed for each in group.series)
    frame = _over_time("errors", "Errors over time", group, max(1, *group.failed) * 1.15, "errors a second", height=170)
    frame.line(_steps(group.failed), "bad", f"{total} errors")
    if not total:
        frame.text((len(group.failed) / 2, 0.5), "no errors", anchor="middle", dx=0)
    return frame.svg()


def units_plot(group: GroupResult) -> str:
    """Write units per check, of each limiter by itself."""
    meters = [meter for meter in group.meters if meter.checks]
    if not meters:
        return ""
    high = max(1.0, *(meter.per_check for meter in meters)) * 1.2
    frame = Frame(
        "units", "Write units per check", linear(0, high), _rows(len(meters)), ticks(0, high),
        [(row, meter.name) for row, meter in enumerate(meters)],
        "write units per check, warm-up included", "", height=70 + _ROW * len(meters), left=110,
    )  # fmt: skip
    for row, meter in enumerate(meters):
        said = f"{meter.name}: {meter.units:,.0f} units for {meter.checks:,} checks"
        frame.bar((0, row), (meter.per_check, row), "s0", said, thick=14)
        frame.text((meter.per_check, row), f"{meter.per_check:.2f}")
    return frame.svg()


def _over_time(kind: str, label: str, group: GroupResult, high: float, unit: str, *, height: int = 240) -> Frame:
    end = len(group.sent)
    return Frame(
        kind, f"{label} of {group.group}", linear(0, end), linear(0, high), ticks(0, end, about=6),
        ticks(0, high, about=4), "seconds", unit, height=height,
    )  # fmt: skip


def _steps(counts: list[int]) -> list[tuple[float, float]]:
    """A level for each second."""
    return list(chain.from_iterable(((second, count), (second + 1, count)) for second, count in enumerate(counts)))


def _rows(count: int) -> Scale:
    """One below the other, the first on top."""
    return lambda row: 1 - (row + 0.5) / count


def _curve(series: SeriesResult) -> list[tuple[float, float]]:
    """From the fastest to the slowest of which there are ten, or to the slowest where they are few."""
    ordered = sorted(chain.from_iterable(series.samples))
    if not ordered:
        return []
    last = _stretched(min(99.99, 100 * (1 - 1 / max(2, len(ordered)))))
    stretched = [last * step / 120 for step in range(121)]
    return [(p, quantile(ordered, p / 100) / 1000) for p in map(_percentile, stretched)]


def _stretched(percentile: float) -> float:
    """0 % is 0, 90 % is 1, 99 % is 2, and so on."""
    return -log10(1 - percentile / 100)


def _percentile(stretched: float) -> float:
    return float(100 * (1 - 10**-stretched))
