"""Two runs held against each other: what changed, and whether it is more than the noise of both."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from ratelimit.cli.output import say, say_table

from .figures import difference
from .result import ConfidenceInterval, GroupResult, Report, SeriesResult, read_report

SAME: Final = 0
SLOWER: Final = 1
_WORTH_TELLING: Final = 0.05
"""A change of less than a twentieth is not called one, however sure it is."""
_PARTS: Final = (("p50", 0.5), ("p99", 0.99))


class Change(NamedTuple):
    """One quantile of one series, in both runs: milliseconds."""

    group: str
    series: str
    part: str
    before: float
    after: float
    difference: ConfidenceInterval

    @property
    def verdict(self) -> str:
        """`slower` and `faster` only where the interval says so, and it is worth telling."""
        if not self.difference.is_clear or abs(self.difference.value) < _WORTH_TELLING * self.before:
            return "no change"
        return "slower" if self.difference.value > 0 else "faster"


def compare_files(before: Path, after: Path) -> int:
    """Say what changed; 1 where something is clearly slower. Raises `Trouble`."""
    old, new = read_report(before), read_report(after)
    changes = changes_between(old, new)
    for warning in _warnings(old, new):
        say(f"caution: {warning}", style="yellow")
    say_table(
        ("", "", "before ms", "after ms", "change ms", "95 % interval", ""),
        [
            (
                f"{change.group}: {change.series}", change.part, f"{change.before:.2f}", f"{change.after:.2f}",
                f"{change.difference.value:+.2f}", f"{change.difference.low:+.2f} to {change.difference.high:+.2f}",
                change.verdict,
            )
            for change in changes
        ],
    )  # fmt: skip
    _say_units(old, new)
    slower = [change for change in changes if change.verdict == "slower"]
    if not changes:
        say("the two runs have no series in common", style="yellow")
    elif slower:
        say(f"{len(slower)} of {len(changes)} figures are slower by more than the noise", style="bold red")
    else:
        say(f"none of {len(changes)} figures is slower by more than the noise", style="bold green")
    return SLOWER if slower else SAME


def changes_between(old: Report, new: Report) -> list[Change]:
    before = {(group.group, series.name): series for group in old.groups for series in group.series}
    found = []
    for group in new.groups:
        for series in group.series:
            earlier = before.get((group.group, series.name))
            if earlier is not None:
                found += _changes(group, earlier, series)
    return found


def _changes(group: GroupResult, before: SeriesResult, after: SeriesResult) -> list[Change]:
    if before.latency is None or after.latency is None:
        return []
    found = []
    for part, share in _PARTS:
        changed = difference(after.samples, before.samples, share, paired=False)
        if changed is not None:
            old, new = getattr(before.latency, part), getattr(after.latency, part)
            found.append(Change(group.group, after.name, part, old, new, changed))
    return found


def _warnings(old: Report, new: Report) -> list[str]:
    """What makes two runs hard to compare."""
    found = [
        f"{what} differs: {one!r} before, {other!r} after"
        for what, one, other in (
            ("the place", old.place, new.place),
            ("the machine", old.environment.get("machine"), new.environment.get("machine")),
            ("the rate", old.environment.get("rate"), new.environment.get("rate")),
        )
        if one != other
    ]
    found += [f"the run {name} was cut short" for name, run in (("before", old), ("after", new)) if not run.complete]
    return found


def _say_units(old: Report, new: Report) -> None:
    before = {(group.group, meter.name): meter for group in old.groups for meter in group.meters}
    rows = [
        (f"{group.group}: {meter.name}", f"{before[key].per_check:.3f}", f"{meter.per_check:.3f}")
        for group in new.groups
        for meter in group.meters
        if (key := (group.group, meter.name)) in before
    ]
    if rows:
        say_table(("write units per check", "before", "after"), rows)
