"""What a migration costs, before it is begun. Prices: DynamoDB on demand, us-east-1, November 2026."""

from __future__ import annotations

from typing import Final

WRITES_PER_MILLION: Final = 0.625
"""US dollars. Reads, for finding out what is there already, add a tenth of it."""
READS_PER_MILLION: Final = 0.125
USUAL_RATE: Final = 2_000
"""Write units a second that one process brings over without `--rate`, on one core of 2026."""


def dollars(write_units: float, *, read_units: float = 0.0) -> float:
    """On demand."""
    return (write_units * WRITES_PER_MILLION + read_units * READS_PER_MILLION) / 1_000_000
