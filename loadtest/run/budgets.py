"""Budgets: what a run may cost at most, by engine, from a TOML file."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from ..result import GroupResult, Verdict
from .options import ENGINES, Options, Trouble

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
