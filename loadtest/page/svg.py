"""Plots as inline SVG: a frame with two axes, and marks in it. Colours are the page's classes, for light and dark."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from math import floor, log10
from typing import Final, TypeAlias

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

    def bar(self, low: Point, high: Point, style: str, name: str, *, thick: float) -> None:
        """From one point to another, straight, so thick; round ends would say more than there is."""
        (x1, y1), (x2, y2) = self.place(low), self.place(high)
        self._marks.append(
            f'<line class="data bar {style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
            f'stroke-width="{thick:.1f}"><title>{escape(name)}</title></line>'
        )

    def dot(self, point: Point, style: str, name: str) -> None:
        """One value."""
        x, y = self.place(point)
        self._marks.append(
            f'<circle class="data dot {style}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"><title>{escape(name)}</title></circle>'
        )

    def text(self, point: Point, words: str, *, anchor: str = "start", dx: float = 8, dy: float = 4) -> None:
        """Words beside a point."""
        x, y = self.place(point)
        self._marks.append(f'<text x="{x + dx:.1f}" y="{y + dy:.1f}" text-anchor="{anchor}">{escape(words)}</text>')

    def svg(self) -> str:
        """All of it."""
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
    """Evenly from `low` to `high`."""
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
