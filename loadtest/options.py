"""What a run was asked to do, and what it may cost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

from ratelimit.cli.options import decimal, whole
from ratelimit.errors import InvalidInput

from .plan import GROUPS, Group, Trouble
from .result import BudgetVerdict, GroupResult

ENGINES: Final = ("localstack", "dynamodb-local", "ministack", "memory")
RATES: Final = {"memory": 200.0, "ministack": 150.0, "dynamodb-local": 150.0, "localstack": 40.0, "dynamodb": 150.0}
"""Requests a second that each keeps up with on two cores, which it shares with all the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Those of `ratelimit loadtest run`. Times are in seconds. Raises `InvalidInput`."""

    named: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[GROUPS]...", help="checks, middleware, sidecar, usage; by default all.", show_default=False
        ),
    ] = None
    engine: Annotated[
        str, typer.Option(help="localstack, dynamodb-local, ministack or memory: started for the run.")
    ] = "localstack"
    store: Annotated[
        str | None, typer.Option(metavar="URL", help="A table of your own instead: dynamodb://TABLE?region=…")
    ] = None
    foreign: Annotated[
        bool, typer.Option("--foreign", help="Write to that table even if it holds what no load test has written.")
    ] = False
    users: Annotated[int, typer.Option(**whole(1, 100_000), help="Requests under way at once, at most.")] = 64
    rate: Annotated[
        float | None, typer.Option(**decimal(0.1), help="Requests a second; by default what the engine keeps up with.")
    ] = None
    duration: Annotated[float, typer.Option(**decimal(1), help="Seconds that each group is measured.")] = 60.0
    warm_up: Annotated[float, typer.Option(**decimal(0), help="Seconds before that.")] = 5.0
    processes: Annotated[int, typer.Option(**whole(1, 64), help="Processes of Locust on this machine.")] = 1
    expect_workers: Annotated[
        int, typer.Option(**whole(0), help="Wait for so many Locust workers, which you start on other machines.")
    ] = 0
    master_port: Annotated[int, typer.Option(**whole(1, 65535), help="Where they find this one.")] = 5557
    host: Annotated[str, typer.Option(help="Where the servers under load and the master listen.")] = "127.0.0.1"
    seed: Annotated[int, typer.Option(**whole(), help="The same users in the same order.")] = 1
    report: Annotated[Path, typer.Option(metavar="DIR")] = Path("loadtest", "report")
    budgets: Annotated[
        Path, typer.Option(metavar="FILE", help="By default those that come with it.", show_default=False)
    ] = Path(__file__).parent / "budgets.toml"
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Short (4 s a group), with budgets that only a fault breaks.")
    ] = False

    def __post_init__(self) -> None:
        if unknown := set(self.named or ()) - set(GROUPS):
            raise InvalidInput(f"unknown group {min(unknown)!r}; there are {', '.join(GROUPS)}")
        if self.engine not in ENGINES:
            raise InvalidInput(f"--engine: unknown engine {self.engine!r}; use one of {', '.join(ENGINES)}")

    @property
    def groups(self) -> tuple[Group, ...]:
        """Return those that are named, in their own order."""
        return tuple(group for group in GROUPS if not self.named or group in self.named)

    @property
    def place(self) -> str:
        """Return the engine's name, or `dynamodb` for a table of one's own."""
        return self.engine if self.store is None else "dynamodb"

    @property
    def paced(self) -> float:
        """Return requests a second."""
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
        for section in filter(None, (_EVERYBODY, options.place, "smoke" if options.smoke else "")):
            for name, value in sections.get(section, {}).items():
                merged[name] = {**merged.get(name, {}), **value} if isinstance(value, dict) else value
        return msgspec.convert(merged, Budgets)
    except OSError as error:
        raise Trouble(f"{file}: {error.strerror or error}") from error
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise Trouble(f"{file}: {error}") from error


def judge(budgets: Budgets, groups: list[GroupResult]) -> list[BudgetVerdict]:
    """Each budget that something was measured for. Exactness is asked of a run whatever else is."""
    found: list[BudgetVerdict] = []
    for group in groups:
        name = group.group
        if budgets.exact:
            found.append(BudgetVerdict(f"{name}: keys whose books differ", len(group.exactness.differences), 0))
        if budgets.error_rate is not None:
            found.append(
                BudgetVerdict(f"{name}: errors", round(group.error_rate, 5), budgets.error_rate, "of all requests")
            )
        if budgets.rate_off is not None and group.complete:
            found.append(
                BudgetVerdict(f"{name}: rate missed by", round(group.pace.off, 4), budgets.rate_off, "of the rate")
            )
        for added in group.added:
            for part, allowed in (("p50", budgets.added_p50_ms), ("p99", budgets.added_p99_ms)):
                if added.series in allowed:
                    value = getattr(added, part).value
                    found.append(
                        BudgetVerdict(f"{name}: {added.series}, added {part}", value, allowed[added.series], "ms")
                    )
        for meter in group.meters:
            if meter.name in budgets.write_units_per_check and meter.checks:
                most = round(budgets.write_units_per_check[meter.name] + meter.users / meter.checks, 3)
                found.append(
                    BudgetVerdict(f"{name}: {meter.name}, writes", round(meter.per_check, 3), most, "units a check")
                )
    return found
