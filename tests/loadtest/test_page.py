"""The report's page: complete in itself, and drawn by a real browser."""

from __future__ import annotations

import base64
import csv
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from loadtest.page import page, write
from loadtest.plan import GROUPS
from loadtest.plots import decades, latency_plot, number, ticks
from loadtest.result import Report, read_report
from tests.browser import Page, browser
from tests.loadtest.results import plan, report, result


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


def every_group(*, failing: int = 0) -> Report:
    return report(*(result(plan(group), failing=failing) for group in GROUPS))


class _Checked(HTMLParser):
    """What a page refers to, and whether its tags are closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        assert tag != "script"
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_from_elsewhere() -> None:
    html = page(every_group())
    found = _Checked(html)
    assert found.open == []
    assert set(found.references) == {"data:,", *(f"locust-{group}.html" for group in GROUPS)}
    assert "url(" not in html
    assert "@import" not in html


def test_what_users_typed_is_no_markup() -> None:
    html = page(report())
    assert "loadtest run &lt;b&gt;" in html
    assert "<b>" not in html


def test_plots_are_well_formed() -> None:
    svg = ElementTree.fromstring(latency_plot(result()))
    assert len(svg.findall("polyline")) == 2


@pytest.mark.parametrize(("failing", "said"), [(0, "Every budget holds."), (5, "1 of 2 budgets broken.")])
def test_the_verdict_comes_first(failing: int, said: str) -> None:
    html = page(report(result(failing=failing)))
    assert said in html
    assert "Exact: " in html


def test_a_run_cut_short_says_so() -> None:
    html = page(report(result(complete=False)))
    assert "Partial: this run was cut short" in html
    assert "Every budget holds" not in html


def test_the_files_say_the_same(tmp_path: Path) -> None:
    given = every_group()
    write(given, tmp_path)
    assert read_report(tmp_path / "report.json") == given
    assert (tmp_path / "index.html").read_text(encoding="utf-8") == page(given)
    with (tmp_path / "figures.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    series = [each for group in given.groups for each in group.series]
    assert [row["series"] for row in rows] == [each.name for each in series]
    with_it = next(row for row in rows if row["series"] == "with the middleware")
    (added,) = given.groups[1].added
    assert float(with_it["added_p50_ms"]) == added.p50.value


def test_axes_have_round_numbers() -> None:
    assert [text for _, text in ticks(0, 150)] == ["0", "50", "100", "150"]
    assert [text for _, text in decades(0.9, 25)] == ["1", "2", "5", "10", "20"]
    assert [number(value) for value in (0, 0.25, 12, 1234.5)] == ["0", "0.25", "12", "1,234"]


DRAWN = """
[...document.querySelectorAll('svg.plot')].map(svg => {
  const frame = svg.getBoundingClientRect();
  const inside = box => box.left >= frame.left - 1 && box.right <= frame.right + 1
    && box.top >= frame.top - 1 && box.bottom <= frame.bottom + 1;
  const data = [...svg.querySelectorAll('.data')];
  const paper = getComputedStyle(svg.closest('figure')).backgroundColor;
  return {
    kind: svg.dataset.plot, width: frame.width, height: frame.height, marks: data.length,
    hidden: data.filter(mark => { const b = mark.getBoundingClientRect(); return b.width + b.height < 1; }).length,
    colourless: data.filter(mark => { const style = getComputedStyle(mark);
      return [style.stroke, style.fill].every(colour => colour === 'none' || colour === paper); }).length,
    outside: [...svg.querySelectorAll('text, .data')].filter(each => !inside(each.getBoundingClientRect()))
      .map(each => each.textContent),
  };
})
"""
OVERLAPS = """
[...document.querySelectorAll('svg.plot')].flatMap(svg => {
  const boxes = [...svg.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]);
  return boxes.flatMap(([one, a], i) => boxes.slice(i + 1)
    .filter(([, b]) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 2 && b.top < a.bottom - 2)
    .map(([other]) => `${svg.dataset.plot}: ${one} / ${other}`));
})
"""


@pytest.mark.heavy
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_plot_is_drawn(tab: Page, tmp_path: Path, scheme: str) -> None:
    write(every_group(failing=3), tmp_path)
    tab.open((tmp_path / "index.html").as_uri(), scheme=scheme)
    plots: list[dict[str, Any]] = tab.evaluate(DRAWN)
    kinds = {plot["kind"] for plot in plots}
    assert kinds == {"latency", "added", "throughput"}
    for plot in plots:
        assert plot["width"] > 300, plot
        assert plot["height"] > 50, plot
        assert plot["marks"] > 0, plot
        assert (plot["hidden"], plot["colourless"], plot["outside"]) == (0, 0, []), plot
    assert tab.evaluate(OVERLAPS) == []
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert tab.complaints == []
    assert [url for url in tab.requests if not url.startswith(("file:", "data:"))] == []


COLOURS = """
(async () => {
  const image = new Image();
  image.src = 'data:image/png;base64,SHOT';
  await image.decode();
  const canvas = new OffscreenCanvas(image.width, image.height), draw = canvas.getContext('2d');
  draw.drawImage(image, 0, 0);
  const pixels = draw.getImageData(0, 0, image.width, image.height).data, wanted = WANTED;
  const counts = Object.fromEntries(wanted.map(colour => [colour, 0]));
  for (let at = 0; at < pixels.length; at += 4) {
    const colour = `rgb(${pixels[at]}, ${pixels[at + 1]}, ${pixels[at + 2]})`;
    if (colour in counts) counts[colour] += 1;
  }
  return [image.width, image.height, counts];
})()
"""
LINES = """
[...new Set([...document.querySelectorAll('svg[data-plot=latency] .data')].map(each => getComputedStyle(each).stroke))]
"""


@pytest.mark.heavy
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_screenshot_shows_the_lines(tab: Page, tmp_path: Path, scheme: str) -> None:
    """Every line's colour is among the pixels, and the paper is light, or dark."""
    write(report(result(), result(plan("sidecar"))), tmp_path)
    tab.open((tmp_path / "index.html").as_uri(), scheme=scheme)
    colours = tab.evaluate(LINES)
    assert len(colours) == 4
    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    shot = base64.b64encode(tab.screenshot()).decode()
    script = COLOURS.replace("SHOT", shot).replace("WANTED", repr([paper, *colours]))
    width, height, counts = tab.evaluate(script)
    assert (width >= 1200, height >= 1000) == (True, True)
    assert counts[paper] > width * height / 4
    assert all(counts[colour] > 100 for colour in colours), counts
    assert (sum(map(int, paper[4:-1].split(","))) > 600) is (scheme == "light")


def test_a_narrow_window_needs_no_scrolling_sideways(tab: Page, tmp_path: Path) -> None:
    write(every_group(), tmp_path)
    tab.open((tmp_path / "index.html").as_uri())
    narrow = """
    (() => { document.body.style.width = '380px';
      return [...document.querySelectorAll('figure, p, h1, h2, dl')].filter(each => each.scrollWidth > 380).length; })()
    """
    assert tab.evaluate(narrow) == 0
