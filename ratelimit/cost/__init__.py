"""What it costs: a month's workload, or what a running service consumes, in AWS's prices. Pure: nothing here does I/O
but reading the price file."""

from ratelimit.cost.estimate import (
    DEFAULT_REGION,
    Estimate,
    Line,
    Prices,
    Provisioned,
    Saving,
    Throughput,
    dollars,
    estimate,
    load_prices,
)
from ratelimit.cost.metrics import SHORTEST, Consumption, read_metrics
from ratelimit.cost.units import LogMode, Units, Workload, amount, in_short, number, replicated, share, units_of

__all__ = [
    "DEFAULT_REGION",
    "SHORTEST",
    "Consumption",
    "Estimate",
    "Line",
    "LogMode",
    "Prices",
    "Provisioned",
    "Saving",
    "Throughput",
    "Units",
    "Workload",
    "amount",
    "dollars",
    "estimate",
    "in_short",
    "load_prices",
    "number",
    "read_metrics",
    "replicated",
    "share",
    "units_of",
]
