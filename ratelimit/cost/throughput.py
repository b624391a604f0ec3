"""The same writes and reads under each way of billing: on demand, provisioned with auto scaling, provisioned fixed."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Final

from ratelimit.cost.prices import Prices
from ratelimit.cost.units import HOURS
from ratelimit.errors import ConfigError

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
