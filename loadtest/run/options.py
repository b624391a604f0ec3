"""What a run was asked to do, and what it may cost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from ..plan import GROUPS, Group, Trouble
from ..result import GroupResult, Verdict

ENGINES: Final = ("localstack", "dynamodb-local", "ministack", "memory")
BUDGETS: Final = Path(__file__).parents[1] / "budgets.toml"
REPORT: Final = Path("loadtest", "report")
RATES: Final = {"memory": 200.0, "ministack": 150.0, "dynamodb-local": 150.0, "localstack": 40.0, "dynamodb": 150.0}
"""Requests a second that each keeps up with on two cores, which it shares with all the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Times are in seconds."""

    groups: tuple[Group, ...] = GROUPS
    engine: str = "localstack"
    store: str | None = None
    """A table of the user's own, in the place of an engine."""
    foreign: bool = False
    """Whether it may hold what no load test has written."""
    users: int = 64
    rate: float | None = None
    """By default what the engine keeps up with."""
    duration: float = 60.0
    warm_up: float = 5.0
    processes: int = 1
    """Of Locust, on this machine."""
    expect_workers: int = 0
    """Workers of Locust that are started by hand, here or elsewhere."""
    master_port: int = 0
    """Where those find us."""
    host: str = "127.0.0.1"
    """Where our servers listen."""
    seed: int = 1
    report: Path = REPORT
    budgets: Path = BUDGETS
    profile: str | None = None
    """A section of the budgets that goes over the others: `smoke`."""
    command: str = ""

    @property
    def place(self) -> str:
        """The engine's name, or `dynamodb` for a table of one's own."""
        return self.engine if self.store is None else "dynamodb"

    @property
    def paced(self) -> float:
        return self.rate or RATES[self.place]


# Budgets: what a run may cost at most, by engine, from a TOML file.

_EVERYBODY: Final = "all"


class Budgets(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """None, or no entry: no budget."""

    error_rate: float | None = None
    rate_off: float | None = None
    """The share by which the intended rate may be missed."""
    exact: bool = True
    added_p50_ms: dict[str, float] = {}
    """By series."""
    added_p99_ms: dict[str, float] = {}
    write_units_per_check: dict[str, float] = {}
    """By meter, which is a limiter of `checks` or a server: on top of one for the first check of each user."""


def read_budgets(options: Options) -> Budgets:
    """Those for everybody, over them those of the engine, and over them those of the profile. Raises `Trouble`."""
    file = options.budgets
    try:
        sections = msgspec.toml.decode(file.read_bytes(), type=dict[str, dict[str, Any]])
        merged: dict[str, Any] = {}
        known = {_EVERYBODY, *ENGINES, "dynamodb", "smoke"}
        if unknown := set(sections) - known:
            raise Trouble(f"{file}: unknown section {min(unknown)!r}; there are {', '.join(sorted(known))}")
        for section in filter(None, (_EVERYBODY, options.place, options.profile)):
            for name, value in sections.get(section, {}).items():
                merged[name] = {**merged.get(name, {}), **value} if isinstance(value, dict) else value
        return msgspec.convert(merged, Budgets)
    except OSError as error:
        raise Trouble(f"{file}: {error.strerror or error}") from error
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise Trouble(f"{file}: {error}") from error


def judge(budgets: Budgets, groups: list[GroupResult]) -> list[Verdict]:
    """Each budget that something was measured for. Exactness is asked of a run whatever else is."""
    found: list[Verdict] = []
    for group in groups:
        name = group.group
        if budgets.exact:
            found.append(Verdict(f"{name}: keys whose books differ", len(group.exactness.differences), 0))
        if budgets.error_rate is not None:
            found.append(Verdict(f"{name}: errors", round(group.error_rate, 5), budgets.error_rate, "of all requests"))
        if budgets.rate_off is not None and group.complete:
            found.append(Verdict(f"{name}: rate missed by", round(group.pace.off, 4), budgets.rate_off, "of the rate"))
        for added in group.added:
            for part, allowed in (("p50", budgets.added_p50_ms), ("p99", budgets.added_p99_ms)):
                if added.series in allowed:
                    value = getattr(added, part).value
                    found.append(Verdict(f"{name}: {added.series}, added {part}", value, allowed[added.series], "ms"))
        for meter in group.meters:
            if meter.name in budgets.write_units_per_check and meter.checks:
                most = round(budgets.write_units_per_check[meter.name] + meter.users / meter.checks, 3)
                found.append(Verdict(f"{name}: {meter.name}, writes", round(meter.per_check, 3), most, "units a check"))
    return found
