"""`Estimate`: a month in dollars, line by line. Lines are rounded to the cent, and the total is their sum."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from math import ceil
from typing import Final

from ratelimit.cost.prices import Prices
from ratelimit.cost.units import HOURS, Units, Workload
from ratelimit.errors import ConfigError

# Amounts as people write them: `50M`, `1.5k`, `20%`; exact, and with an error that says what would be right.

_AMOUNT: Final = re.compile(r"([0-9]+(?:[_,][0-9]{3})*|[0-9]*)(\.[0-9]+)?\s*([kKmMgGbB]?)")
_NUMBER: Final = r"[0-9]+(?:\.[0-9]+)?|\.[0-9]+"
_SHARE: Final = re.compile(rf"({_NUMBER})\s*(%?)")
_SCALES: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}
_MOST: Final = 10**15


def amount(name: str, text: str) -> int:
    """A whole number of at least 0: `1500`, `1_500`, `1.5k`, `50M`, `2G` (or `2B`). Raises `ConfigError` on `name`."""
    match = _AMOUNT.fullmatch(text.strip())
    if match is None or not (match[1] or match[2]):
        raise ConfigError(name, f"{text!r} is no amount; write it like 1500, 1.5k, 50M or 2G")
    number = Fraction(re.sub("[_,]", "", match[1]) + (match[2] or "")) * _SCALES[match[3].lower()]
    if number.denominator != 1:
        raise ConfigError(name, f"{text!r} is not a whole number; write it like 1500, 1.5k, 50M or 2G")
    if number > _MOST:
        raise ConfigError(name, f"{text!r} is more than a month can hold")
    return int(number)


def share(name: str, text: str) -> Fraction:
    """A part of the whole, 0 to 1: `20%`, `0.2`. Raises `ConfigError` on `name`."""
    match = _SHARE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(name, f"{text!r} is no share; write it like 20% or 0.2")
    found = Fraction(match[1]) / (100 if match[2] else 1)
    if found > 1:
        hint = f"; did you mean {text.strip()}%?" if not match[2] and found <= 100 else ""
        raise ConfigError(name, f"{text!r} is more than the whole, 100%{hint}")
    return found


def number(name: str, text: str) -> Fraction:
    """A number of at least 0: `2`, `0.25`. Raises `ConfigError` on `name`."""
    if re.fullmatch(_NUMBER, text.strip()) is None:
        raise ConfigError(name, f"{text!r} is no number; write it like 2 or 0.5")
    return Fraction(text.strip())


def in_short(number: Fraction | int) -> str:
    """`50M`, `1.5k`, `12`: three digits, and more only beyond 999G."""
    for letter, scale in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= scale:
            whole = f"{round(number / scale):,}"
            return (f"{float(number / scale):.3g}" if number < 999 * scale else whole) + letter
    return f"{float(number):.3g}"


# The same writes and reads under each way of billing: on demand, provisioned with auto scaling, provisioned fixed.

_MILLION: Final = 10**6
_SECONDS: Final = HOURS * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Provisioned:
    """So many units a second, all month, and their price."""

    write: int
    read: int
    dollars: Fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """A month's writes and reads, storage left out."""

    on_demand: Fraction
    auto_scaled: Provisioned
    """On average: auto scaling follows the traffic at its target utilisation."""
    fixed: Provisioned
    """Enough for the peak at all times."""


def compare_billing(
    writes: Fraction, reads: Fraction, prices: Prices, *, peak: Fraction, utilisation: Fraction
) -> Throughput:
    """`peak` is how many times the average the busiest minutes are, at least 1; `utilisation` a share above 0."""
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
    """A table has one unit of each at least."""
    write, read = max(1, ceil(writes / _SECONDS)), max(1, ceil(reads / _SECONDS))
    return Provisioned(write=write, read=read, dollars=HOURS * (write * prices.write_hour + read * prices.read_hour))


_CENT: Final = Decimal("0.01")
_SECOND_OF_UNIT: Final = 3600
# A load balancer's unit: 25 new connections a second, or 1 GB an hour. A request is taken for 4 KB both ways, and every
# tenth opens a connection.
_CONNECTIONS: Final = 25 * _SECOND_OF_UNIT
_REQUESTS_PER_CONNECTION: Final = 10
_REQUEST_GB: Final = Fraction(4, 2**20)


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
        """The sum of the lines."""
        return sum((line.dollars for line in self.lines), Decimal(0))


def estimate(units: Units, workload: Workload, prices: Prices, *, peak: Fraction, utilisation: Fraction) -> Estimate:
    """Billed on demand; `peak` (times the average) and `utilisation` are for the comparison with provisioned units."""
    return Estimate(
        lines=_lines(units, workload, prices),
        savings=(*_spared(units, prices), *_log_savings(units, workload, prices)),
        throughput=compare_billing(units.writes, units.reads, prices, peak=peak, utilisation=utilisation),
    )


def dollars(amount: Fraction) -> Decimal:
    """To the cent."""
    return (Decimal(amount.numerator) / Decimal(amount.denominator)).quantize(_CENT, ROUND_HALF_UP)


def _lines(units: Units, workload: Workload, prices: Prices) -> tuple[Line, ...]:
    gb = units.state_gb + units.event_gb
    requests = workload.checks if workload.tasks else 0
    return (
        _writes("writes: checks", units.checks, prices),
        _writes("writes: refused checks", units.refused, prices),
        _writes("writes: usage log", units.events, prices),
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
    """What a smaller log would keep off: its writes, and the room they take."""
    if not units.events:
        return []
    event = _write_price(units.events, prices) + units.event_gb * (prices.storage_gb + prices.recovery_gb)
    savings = [Saving('log = "none"', False, dollars(event))]
    # By the check: also where the events were counted in a running service, and nobody said how many checks there are.
    one = replace(workload, checks=1)
    for name, other in (
        ('log = "allowed"', replace(one, log="allowed")),
        ("log_sample = 0.1", replace(one, log_sample=Fraction(1, 10))),
    ):
        if other.events < one.events:
            savings.append(Saving(name, False, dollars(event * (1 - other.events / one.events))))
    return savings
