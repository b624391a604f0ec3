"""`Units`: what DynamoDB bills in a month, and what was spared; from a `Workload`, or from what was really consumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Final

from ratelimit.cost.workload import Workload

HOURS: Final = 730
"""Of a month, as AWS counts."""

_DAYS: Final = Fraction(HOURS, 24)
_WRITE_UNIT: Final = 1024
_GB: Final = 2**30
# What DynamoDB adds to an item for its own books, and bills as storage.
_OVERHEAD: Final = 100
# Keys and the totals of 35 days and 13 months, of a user who comes every day; two fields for each window.
_STATE_BYTES: Final = 700
_WINDOW_BYTES: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """Write and read units of a month; and bytes, as they are once the log has run for as long as it keeps."""

    checks: Fraction = Fraction(0)
    """Written by checks that were admitted."""
    refused: Fraction = Fraction(0)
    """Writes that DynamoDB refused: each costs as if it had not."""
    events: Fraction = Fraction(0)
    reads: Fraction = Fraction(0)
    state_gb: Fraction = Fraction(0)
    event_gb: Fraction = Fraction(0)
    spared: Mapping[str, Fraction] = field(default_factory=dict)
    """Writes that did not happen, by what spared them."""

    @property
    def writes(self) -> Fraction:
        """All of them."""
        return self.checks + self.refused + self.events


def units_of(workload: Workload) -> Units:
    """What a workload comes to."""
    denied = workload.checks * workload.denied
    admitted = workload.checks - denied
    leased = workload.leased * (1 - Fraction(1, workload.lease))
    after_leases = admitted * (1 - leased)
    written = after_leases * (1 - workload.coalesced)
    return Units(
        checks=written * (1 + workload.second),
        refused=denied * (1 - workload.repeated),
        events=workload.events * -(-workload.event_bytes // _WRITE_UNIT),
        reads=Fraction(workload.reads),
        state_gb=state_gb(workload),
        event_gb=event_gb(workload.events, workload),
        spared={
            "denial cache": denied * workload.repeated,
            "leases": (admitted - after_leases) * (1 + workload.second),
            "coalescing": (after_leases - written) * (1 + workload.second),
        },
    )


def state_gb(workload: Workload) -> Fraction:
    """One item for each user and action."""
    item = _STATE_BYTES + _WINDOW_BYTES * workload.windows + _OVERHEAD
    return Fraction(workload.users * workload.actions * item, _GB)


def event_gb(events: Fraction, workload: Workload) -> Fraction:
    """All that is kept at a time."""
    return events / _DAYS * workload.days_kept * (workload.event_bytes + _OVERHEAD) / _GB
