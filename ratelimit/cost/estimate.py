"""`Estimate`: a month in dollars, line by line. Lines are rounded to the cent, and the total is their sum."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields, replace
from datetime import date
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from importlib.resources import files
from math import ceil
from pathlib import Path
from typing import Any, Final

from ratelimit.cost.units import HOURS, Units, Workload, in_short
from ratelimit.errors import ConfigError

# `Prices`: what AWS asks for in one region, read from a dated file.

DEFAULT_REGION: Final = "us-east-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """In US dollars, as of a day."""

    region: str
    as_of: date
    write_million: Fraction
    """A million write units on demand."""
    read_million: Fraction
    write_hour: Fraction
    """One provisioned write unit for an hour."""
    read_hour: Fraction
    storage_gb: Fraction
    """A month."""
    recovery_gb: Fraction
    """Point-in-time recovery, a month."""
    vcpu_hour: Fraction
    memory_gb_hour: Fraction
    balancer_hour: Fraction
    balancer_unit_hour: Fraction


def load_prices(region: str = DEFAULT_REGION, path: Path | None = None) -> Prices:
    """Return those of a region, from the file that comes along or from one's own. Raise `ConfigError`."""
    document = _document(path)
    regions = document.get("regions")
    if not isinstance(regions, dict) or not isinstance(document.get("as_of"), date):
        raise ConfigError("prices", "the file needs `as_of` (a date) and a table `[regions.NAME]` for each region")
    if region not in regions:
        known = ", ".join(sorted(regions))
        raise ConfigError(
            "region", f"no prices for {region!r} ({known}); give --prices FILE, a copy of ratelimit/cost/prices.toml"
        )
    return Prices(region=region, as_of=document["as_of"], **_numbers(region, regions[region]))


def _document(path: Path | None) -> dict[str, Any]:
    try:
        text = (files("ratelimit.cost") / "prices.toml" if path is None else path).read_text(encoding="utf-8")
        return tomllib.loads(text, parse_float=Decimal)
    except OSError as error:
        raise ConfigError("prices", f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError("prices", f"{path} is no TOML: {error}") from None


def _numbers(region: str, table: object) -> dict[str, Fraction]:
    wanted = {field.name for field in fields(Prices)} - {"region", "as_of"}
    given = table if isinstance(table, dict) else {}
    for name in sorted(wanted ^ set(given)):
        problem = "is missing" if name in wanted else "is unknown"
        raise ConfigError(f"prices.regions.{region}.{name}", problem)
    for name, value in given.items():
        if not _is_price(value):
            raise ConfigError(f"prices.regions.{region}.{name}", f"must be a number of dollars, not {value}")
    return {name: Fraction(value) for name, value in given.items()}


def _is_price(value: object) -> bool:
    if isinstance(value, Decimal):
        return value.is_finite() and value >= 0
    return type(value) is int and value >= 0


_MILLION: Final = 10**6
_SECONDS: Final = HOURS * 3600
_CENT: Final = Decimal("0.01")
# A load balancer's unit: 25 new connections a second, or 1 GB an hour. A request is taken for 4 KB both ways, and every
# tenth opens a connection.
_CONNECTIONS: Final = 25 * 3600
_REQUESTS_PER_CONNECTION: Final = 10
_REQUEST_GB: Final = Fraction(4, 2**20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provisioned:
    """So many units a second, all month, and their price."""

    write: int
    read: int
    dollars: Fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """A month's writes and reads under each way of billing, storage left out."""

    on_demand: Fraction
    auto_scaled: Provisioned
    """On average: auto scaling follows the traffic at its target utilisation."""
    fixed: Provisioned
    """Enough for the peak at all times."""


def compare_billing(
    writes: Fraction, reads: Fraction, prices: Prices, *, peak: Fraction, utilisation: Fraction
) -> Throughput:
    """Compare the ways of billing.

    `peak` is how many times the average the busiest minutes are, at least 1; `utilisation` a share above 0.
    """
    if peak < 1:
        raise ConfigError("peak", "must be at least 1: times the average")
    if not 0 < utilisation <= 1:
        raise ConfigError("utilisation", "must be a share above 0, as in 70%")
    return Throughput(
        on_demand=(writes * prices.write_million + reads * prices.read_million) / _MILLION,
        auto_scaled=_provisioned(writes / utilisation, reads / utilisation, prices),
        fixed=_provisioned(writes * peak, reads * peak, prices),
    )


def _provisioned(writes: Fraction, reads: Fraction, prices: Prices) -> Provisioned:
    # A table has one unit of each at least.
    write, read = max(1, ceil(writes / _SECONDS)), max(1, ceil(reads / _SECONDS))
    return Provisioned(write=write, read=read, dollars=HOURS * (write * prices.write_hour + read * prices.read_hour))


@dataclass(frozen=True, slots=True)
class Line:
    """One thing to pay for. `basis` says how much of it, in words."""

    name: str
    basis: str
    dollars: Decimal


@dataclass(frozen=True, slots=True)
class Saving:
    """What a setting keeps off the bill, or (`is_on` False) would keep off it."""

    name: str
    is_on: bool
    dollars: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A month."""

    lines: tuple[Line, ...]
    savings: tuple[Saving, ...]
    throughput: Throughput

    @property
    def total(self) -> Decimal:
        """Return the sum of the lines."""
        return sum((line.dollars for line in self.lines), Decimal(0))


def estimate(units: Units, workload: Workload, prices: Prices, *, peak: Fraction, utilisation: Fraction) -> Estimate:
    """Return the bill on demand; `peak` and `utilisation` are for the comparison with provisioned units."""
    return Estimate(
        lines=_lines(units, workload, prices),
        savings=(*_spared(units, prices), *_log_savings(units, workload, prices)),
        throughput=compare_billing(units.writes, units.reads, prices, peak=peak, utilisation=utilisation),
    )


def dollars(amount: Fraction) -> Decimal:
    """Round to the cent."""
    return (Decimal(amount.numerator) / Decimal(amount.denominator)).quantize(_CENT, ROUND_HALF_UP)


def _lines(units: Units, workload: Workload, prices: Prices) -> tuple[Line, ...]:
    gb = units.state_gb + units.event_gb
    requests = workload.checks if workload.tasks else 0
    return (
        _writes("writes: checks", units.checks, prices),
        _writes("writes: refused checks", units.refused, prices),
        _writes("writes: usage log", units.events, prices),
        _writes("writes: timelines", units.timelines, prices),
        Line("reads", f"{in_short(units.reads)} units", dollars(units.reads * prices.read_million / _MILLION)),
        Line("storage", _gb(gb), dollars(gb * prices.storage_gb)),
        Line("point-in-time recovery", _gb(gb), dollars(gb * prices.recovery_gb)),
        Line("Fargate", _tasks(workload), dollars(_fargate(workload, prices))),
        Line("load balancer", f"{in_short(requests)} requests", dollars(_balancer(workload, prices))),
    )


def _writes(name: str, writes: Fraction, prices: Prices) -> Line:
    return Line(name, f"{in_short(writes)} units", dollars(_write_price(writes, prices)))


def _write_price(writes: Fraction, prices: Prices) -> Fraction:
    return writes * prices.write_million / _MILLION


def _gb(gb: Fraction) -> str:
    return f"{float(gb):,.2f} GB"


def _tasks(workload: Workload) -> str:
    if not workload.tasks:
        return "none"
    return f"{workload.tasks} of {float(workload.vcpu):g} vCPU, {float(workload.memory):g} GB"


def _fargate(workload: Workload, prices: Prices) -> Fraction:
    hour = workload.vcpu * prices.vcpu_hour + workload.memory * prices.memory_gb_hour
    return workload.tasks * HOURS * hour


def _balancer(workload: Workload, prices: Prices) -> Fraction:
    if not workload.tasks:
        return Fraction(0)
    by_connections = Fraction(workload.checks, _REQUESTS_PER_CONNECTION * _CONNECTIONS)
    unit_hours = max(by_connections, workload.checks * _REQUEST_GB)
    return HOURS * prices.balancer_hour + unit_hours * prices.balancer_unit_hour


def _spared(units: Units, prices: Prices) -> list[Saving]:
    return [Saving(name, True, dollars(_write_price(writes, prices))) for name, writes in units.spared.items()]


def _log_savings(units: Units, workload: Workload, prices: Prices) -> list[Saving]:
    """Return what a smaller log would keep off: its writes, and the room they take."""
    if not units.events:
        return []
    stored = units.event_gb * (prices.storage_gb + prices.recovery_gb)
    event = _write_price(units.events + units.timelines, prices) + stored
    savings = [Saving('log = "none"', False, dollars(event))]
    if units.timelines:
        index = _write_price(units.timelines, prices) + stored * units.timelines / (units.events + units.timelines)
        savings.append(Saving("timeline = false", False, dollars(index)))
    # By the check: also where the events were counted in a running service, and nobody said how many checks there are.
    one = replace(workload, checks=1)
    for name, other in (
        ('log = "allowed"', replace(one, log="allowed")),
        ("log_sample = 0.1", replace(one, log_sample=Fraction(1, 10))),
    ):
        if other.events < one.events:
            savings.append(Saving(name, False, dollars(event * (1 - other.events / one.events))))
    return savings
