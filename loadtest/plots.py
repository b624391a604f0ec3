"""What there is to see of a group: each plot as SVG, empty where there is nothing to show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import chain
from math import floor, log10
from typing import Final, TypeAlias

from .figures import quantile
from .result import GroupResult, SeriesResult

# Plots as inline SVG: a frame with two axes, and marks in it. Colours are the page's classes, for light and dark.

WIDTH: Final = 640
_LEFT: Final = 64
_RIGHT: Final = 16
_TOP: Final = 14
_BOTTOM: Final = 42

Scale: TypeAlias = Callable[[float], float]
"""From a value to a part of the axis, 0 to 1."""
Point: TypeAlias = tuple[float, float]
Tick: TypeAlias = tuple[float, str]


@dataclass
class Frame:
    """A plot of `kind`, said in a few words by `label` for those who do not see it."""

    kind: str
    label: str
    x: Scale
    y: Scale
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    x_title: str
    y_title: str
    height: int = 280
    left: int = _LEFT
    _marks: list[str] = field(default_factory=list)

    def place(self, point: Point) -> Point:
        """Where a value is, in the SVG's own units; what lies outside is drawn on the edge."""
        x, y = (min(1.0, max(0.0, scale(value))) for scale, value in zip((self.x, self.y), point, strict=True))
        return self.left + x * (WIDTH - self.left - _RIGHT), _TOP + (1 - y) * (self.height - _TOP - _BOTTOM)

    def line(self, points: Iterable[Point], style: str, name: str) -> None:
        """Points joined; `name` is shown where the pointer rests."""
        path = " ".join("{:.1f},{:.1f}".format(*self.place(point)) for point in points)
        self._marks.append(
            f'<polyline class="data line {style}" points="{path}"><title>{escape(name)}</title></polyline>'
        )

    def bar(self, low: Point, high: Point, style: str, name: str) -> None:
        """From one point to another, straight; round ends would say more than there is."""
        (x1, y1), (x2, y2) = self.place(low), self.place(high)
        self._marks.append(
            f'<line class="data bar {style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
            f'stroke-width="8"><title>{escape(name)}</title></line>'
        )

    def dot(self, point: Point, style: str, name: str) -> None:
        x, y = self.place(point)
        self._marks.append(
            f'<circle class="data dot {style}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"><title>{escape(name)}</title></circle>'
        )

    def text(self, point: Point, words: str, *, anchor: str, dx: float) -> None:
        """Just above a point."""
        x, y = self.place(point)
        self._marks.append(f'<text x="{x + dx:.1f}" y="{y - 8:.1f}" text-anchor="{anchor}">{escape(words)}</text>')

    def svg(self) -> str:
        grid = [*map(self._x_tick, self.x_ticks), *map(self._y_tick, self.y_ticks), self._titles()]
        return (
            f'<svg class="plot" data-plot="{self.kind}" viewBox="0 0 {WIDTH} {self.height}" role="img" '
            f'aria-label="{escape(self.label)}">{"".join(grid)}{"".join(self._marks)}</svg>'
        )

    def _x_tick(self, tick: Tick) -> str:
        x, _ = self.place((tick[0], 0))
        bottom = self.height - _BOTTOM
        return (
            f'<line class="grid" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}"/>'
            f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{escape(tick[1])}</text>'
        )

    def _y_tick(self, tick: Tick) -> str:
        _, y = self.place((0, tick[0]))
        return (
            f'<line class="grid" x1="{self.left}" y1="{y:.1f}" x2="{WIDTH - _RIGHT}" y2="{y:.1f}"/>'
            f'<text x="{self.left - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(tick[1])}</text>'
        )

    def _titles(self) -> str:
        middle = (self.left + WIDTH - _RIGHT) / 2
        across = (
            f'<text class="title" x="{middle:.0f}" y="{self.height - 6}" text-anchor="middle">'
            f"{escape(self.x_title)}</text>"
        )
        if not self.y_title:
            return across
        centre = (_TOP + self.height - _BOTTOM) / 2
        return (
            f'{across}<text class="title" transform="translate(14 {centre:.0f}) rotate(-90)" '
            f'text-anchor="middle">{escape(self.y_title)}</text>'
        )


def linear(low: float, high: float) -> Scale:
    span = (high - low) or 1.0
    return lambda value: (value - low) / span


def logarithmic(low: float, high: float) -> Scale:
    """By powers of ten; what is not above 0 is at the bottom."""
    first, span = log10(low), (log10(high) - log10(low)) or 1.0
    return lambda value: (log10(value) - first) / span if value > 0 else 0.0


def ticks(low: float, high: float, *, about: int = 5) -> list[Tick]:
    """Round values from `low` to `high`."""
    step = _round_step((high - low) / about)
    first = floor(low / step + 0.999999)
    return [(n * step, number(n * step)) for n in range(first, floor(high / step + 1e-9) + 1)]


def decades(low: float, high: float) -> list[Tick]:
    """Powers of ten and what lies between them at 2 and 5, few enough to be read."""
    steps = (1, 2, 5) if high / low <= 1e3 else (1,)
    found = [step * 10.0**power for power in range(floor(log10(low)), floor(log10(high)) + 1) for step in steps]
    return [(value, number(value)) for value in found if low <= value * 1.0001 and value <= high * 1.0001]


def number(value: float) -> str:
    """As short as it can be: `0.25`, `1.5`, `1,200`."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _round_step(rough: float) -> float:
    if rough <= 0:
        return 1.0
    power = 10.0 ** floor(log10(rough))
    return float(next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= rough * 0.9999))


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
        frame.bar((interval.low, row), (interval.high, row), "s1 faint", said)
        frame.dot((interval.value, row), "s1", said)
        near_edge = interval.value > low + (high - low) * 0.8
        frame.text(
            (interval.value, row), f"{interval.value:+.2f}", dx=-8 if near_edge else 8,
            anchor="end" if near_edge else "start",
        )  # fmt: skip
    return frame.svg()


def throughput_plot(group: GroupResult) -> str:
    """Requests, answers and errors, second by second, and the rate that was intended."""
    if not group.sent:
        return ""
    end, high = len(group.sent), max(group.pace.asked, *group.sent, *group.answered) * 1.15
    frame = Frame(
        "throughput", f"Throughput over time of {group.group}", linear(0, end), linear(0, high),
        ticks(0, end, about=6), ticks(0, high, about=4), "seconds", "a second", height=240,
    )  # fmt: skip
    frame.line([(0, group.pace.asked), (end, group.pace.asked)], "intended", f"intended: {group.pace.asked:g} a second")
    frame.line(_steps(group.sent), "s1", "sent")
    frame.line(_steps(group.answered), "s0", "answered")
    frame.line(_steps(group.failed), "bad", f"{sum(each.failed for each in group.series)} errors")
    return frame.svg()


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
