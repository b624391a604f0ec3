"""The page: a verdict, and for each group its plots and figures. No script, no font, nothing from elsewhere."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Final

import msgspec

from .plots import added_plot, latency_plot, style_of, throughput_plot
from .result import GroupResult, Quantiles, Report

_STYLE: Final = Path(__file__).with_name("page.css")
_TITLES: Final = {
    "checks": "Checks: the limiter called directly",
    "middleware": "Middleware: an app with it and without",
    "sidecar": "Sidecar: the proxy and the decision endpoint",
    "usage": "Usage: recording and reading back while checking",
}
_READING: Final = (
    "Requests are sent at a constant rate, however long the answers to earlier ones take. A latency is counted from "
    "the moment when the request was meant to start, so that waiting for a slow server is part of it. The requests of "
    "a group take turns in a random order: what disturbs the machine disturbs all of them. The clock is the sender's; "
    "under own, a check takes what the clock of the limiter's own process says, without the way there and back."
)


def page(report: Report) -> str:
    title = f"Load test on {report.place}"
    body = [
        f"<header><h1>{escape(title)}</h1>",
        f"<p>{escape(report.date)} · <code>{escape(report.command)}</code></p></header>",
        _verdict(report),
        *(f'<p class="note">{escape(note)}</p>' for note in report.notes),
        _budgets(report),
        *map(_group, report.groups),
        _environment(report),
    ]
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title>'
        f"<style>{_STYLE.read_text(encoding='utf-8')}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _verdict(report: Report) -> str:
    if not report.complete:
        kind, words = "bad", "Partial: this run was cut short"
    elif report.holds:
        kind, words = "good", "Every budget holds"
    else:
        broken = sum(not verdict.holds for verdict in report.verdicts)
        kind, words = "bad", f"{broken} of {len(report.verdicts)} budgets broken"
    books = [group.exactness for group in report.groups]
    admitted = sum(book.admitted for book in books)
    exact = "Exact" if all(book.holds for book in books) else "NOT EXACT"
    return (
        f'<p class="verdict {kind}">{words}. {exact}: {admitted:,} admissions counted by the clients, '
        f"{sum(book.counted for book in books):,} in the totals of the table, "
        f"{sum(book.logged for book in books):,} in the events of the log.</p>"
    )


def _budgets(report: Report) -> str:
    rows = [
        (
            verdict.budget,
            f"{verdict.measured:g}",
            f"{verdict.at_most:g}",
            verdict.unit,
            '<span class="good">holds</span>' if verdict.holds else '<span class="bad">broken</span>',
        )
        for verdict in report.verdicts
    ]
    if not rows:
        return ""
    return f"<section><h2>Budgets</h2>{_table(('', 'measured', 'at most', '', ''), rows, raw=(4,))}</section>"


def _group(group: GroupResult) -> str:
    pace = group.pace
    kept = "kept" if pace.kept else "NOT kept"
    plots = [
        ("Latency, by percentile", latency_plot(group), _legend(series.name for series in group.series)),
        ("Added latency", added_plot(group), ""),
        (
            "Throughput", throughput_plot(group),
            _legend(("answered", "sent"), ("intended", "intended"), ("bad", "errors")),
        ),
    ]  # fmt: skip
    figures = "".join(
        f"<figure><figcaption>{title}{legend}</figcaption>{plot}</figure>" for title, plot, legend in plots if plot
    )
    return (
        f'<section id="{group.group}"><h2>{_TITLES[group.group]}</h2>'
        f"<p>{group.count:,} requests in {group.seconds:g} s by {group.users} users; the rate of {pace.asked:g} a "
        f"second was {kept} ({pace.sent:g}). Until a user was free: {pace.waited_p99:.2f} ms (p99); lateness of the "
        f"generator itself: {pace.lag_p99:.2f} ms (p99). "
        f'<a href="locust-{group.group}.html">Locust\'s own report</a></p>'
        f'<div class="plots">{figures}</div>{_series_table(group)}{_meters(group)}{_books(group)}</section>'
    )


def _legend(names: Iterable[str], *others: tuple[str, str]) -> str:
    entries = [*((style_of(index), name) for index, name in enumerate(names)), *others]
    return "".join(f'<span class="key {style}">{escape(name)}</span>' for style, name in entries)


def _series_table(group: GroupResult) -> str:
    added = {each.series: each for each in group.added}
    rows = []
    for series in group.series:
        more = added.get(series.name)
        rows.append(
            (
                series.name, f"{series.count:,}", f"{series.refused:,}", f"{series.failed:,}",
                *_milliseconds(series.latency), "" if series.service is None else _ms(series.service.p50),
                "" if series.service is None else _ms(series.service.p99),
                "" if more is None else f"{more.p50.value:+.2f} / {more.p99.value:+.2f}",
            )
        )  # fmt: skip
    columns = (
        "", "requests", "refused", "errors", "p50 ms", "p90", "p99", "p99.9", "most", "own p50", "own p99",
        "added p50 / p99",
    )  # fmt: skip
    return _table(columns, rows)


def _meters(group: GroupResult) -> str:
    meters = [meter for meter in group.meters if meter.checks]
    rows = [(each.name, f"{each.checks:,}", f"{each.units:,.0f}", f"{each.per_check:.2f}") for each in meters]
    return _table(("write units, warm-up included", "checks", "units", "units per check"), rows) if rows else ""


def _milliseconds(found: Quantiles | None) -> tuple[str, ...]:
    if found is None:
        return ("",) * 5
    return tuple(map(_ms, (found.p50, found.p90, found.p99, found.p999, found.most)))


def _ms(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def _books(group: GroupResult) -> str:
    books = group.exactness
    verdict = '<span class="good">exact</span>' if books.holds else '<span class="bad">NOT exact</span>'
    unknown = f", and {books.unknown:,} requests without an answer" if books.unknown else ""
    units = f" An event in the log took {group.event_units:g} write units." if group.event_units else ""
    differences = "".join(f"<li><code>{escape(each)}</code></li>" for each in books.differences)
    return (
        f"<p>Books: {books.admitted:,} admitted, {books.counted:,} counted, {books.logged:,} logged{unknown}: "
        f"{verdict}.{units}</p>{f'<ul>{differences}</ul>' if differences else ''}"
    )


def _environment(report: Report) -> str:
    rows = [(escape(name), escape(value)) for name, value in report.environment.items()]
    facts = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows)
    return f"<section><h2>Environment</h2><dl>{facts}</dl><h2>How to read it</h2><p>{escape(_READING)}</p></section>"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, raw: tuple[int, ...] = ()) -> str:
    """Cells are escaped, but for the columns in `raw`."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{cell if at in raw else escape(cell)}</td>" for at, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


# Writes a report: `index.html` for people, `report.json` for comparisons, `figures.csv` for a spreadsheet.

_QUANTILES: Final = ("p50", "p90", "p99", "p999", "most", "mean")


def write(report: Report, folder: Path) -> None:
    (folder / "report.json").write_bytes(msgspec.json.encode(report) + b"\n")
    (folder / "index.html").write_text(page(report), encoding="utf-8")
    _write_csv(report, folder / "figures.csv")


def _write_csv(report: Report, file: Path) -> None:
    """A line for each series. Milliseconds."""
    kinds = ("latency", "service")
    names = [f"{kind}_{part}_ms" for kind in kinds for part in _QUANTILES]
    more = ("added_p50_ms", "added_p50_low", "added_p50_high", "added_p99_ms", "added_p99_low", "added_p99_high")
    with file.open("w", encoding="utf-8", newline="") as out:
        sheet = csv.writer(out)
        sheet.writerow(("place", "group", "series", "requests", "refused", "errors", "sent_per_second", *names, *more))
        for group in report.groups:
            added = {each.series: each for each in group.added}
            for series in group.series:
                found = added.get(series.name)
                intervals = () if found is None else (found.p50, found.p99)
                sheet.writerow(
                    (
                        report.place, group.group, series.name, series.count, series.refused, series.failed,
                        group.pace.sent, *_numbers(series.latency), *_numbers(series.service),
                        *(value for each in intervals for value in (each.value, each.low, each.high)),
                    )
                )  # fmt: skip


def _numbers(found: Quantiles | None) -> tuple[float | str, ...]:
    return tuple("" if found is None else getattr(found, part) for part in _QUANTILES)
