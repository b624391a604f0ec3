"""A run's last words in the terminal: the budgets, what was measured, where the report is, and the exit status."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ratelimit.cli.output import say, say_table

from ..result import GroupResult, Report
from .options import Options, Trouble
from .run import INTERRUPTED, run

HOLD: Final = 0
BROKEN: Final = 1


def conclude(options: Options) -> int:
    """Run, say what came of it, and return the exit status. Raises `Trouble`."""
    report = run(options)
    if not report.groups:
        raise Trouble("interrupted before anything was measured; there is no report", status=INTERRUPTED)
    for group in report.groups:
        say_table(("", "requests", "errors", "p50 ms", "p99 ms", "added p50", "added p99"), _rows(group))
    say_table(
        ("budget", "measured", "at most", "", ""),
        [
            (v.budget, f"{v.measured:g}", f"{v.at_most:g}", v.unit, "holds" if v.holds else "BROKEN")
            for v in report.verdicts
        ],
    )
    for note in report.notes:
        say(note, style="yellow")
    for group in report.groups:
        for difference in group.exactness.differences:
            say(f"{group.group}: {difference}", style="red")
    say(_verdict(report, options.report), style="bold green" if report.holds and report.complete else "bold red")
    if not report.complete:
        return INTERRUPTED
    return HOLD if report.holds else BROKEN


def _rows(group: GroupResult) -> list[tuple[str, ...]]:
    added = {each.series: each for each in group.added}
    rows: list[tuple[str, ...]] = []
    for series in group.series:
        latency, more = series.latency, added.get(series.name)
        rows.append(
            (
                f"{group.group}: {series.name}", f"{series.count:,}", f"{series.failed:,}",
                f"{latency.p50:.2f}" if latency else "", f"{latency.p99:.2f}" if latency else "",
                f"{more.p50.value:+.2f}" if more else "", f"{more.p99.value:+.2f}" if more else "",
            )
        )  # fmt: skip
    return rows


def _verdict(report: Report, folder: Path) -> str:
    where = (folder / "index.html").resolve()
    if not report.complete:
        return f"PARTIAL, cut short: {where}"
    if report.holds:
        return f"every budget holds: {where}"
    broken = sum(not verdict.holds for verdict in report.verdicts)
    return f"{broken} of {len(report.verdicts)} budgets BROKEN: {where}"
