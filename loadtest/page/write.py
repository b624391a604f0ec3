"""Writes a report: `index.html` for people, `report.json` for comparisons, `figures.csv` for a spreadsheet."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Final

import msgspec

from loadtest.result import Quantiles, Report
from loadtest.page.page import page

_QUANTILES: Final = ("p50", "p90", "p99", "p999", "most", "mean")


def write(report: Report, folder: Path) -> None:
    """Into a folder that is there."""
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
