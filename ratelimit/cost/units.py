"""`Units`: what DynamoDB bills in a month, and what was spared; from a `Workload`, or from what was really consumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Final, Literal, TypeAlias, get_args

from ratelimit.errors import ConfigError

# `Workload`: what a month brings, in numbers that somebody can know or guess.

LogMode: TypeAlias = Literal["all", "allowed", "denied", "none"]

_SHARES: Final = ("denied", "repeated", "coalesced", "leased", "second", "log_sample")
_AT_LEAST_ONE: Final = ("lease", "actions", "event_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A month. Shares are parts of 1. Raises `ConfigError` naming the bad number.

    `checks`       asked for, the refused ones included.
    `denied`       of them.
    `users`        that have counters, and `actions` of each; `windows` in a policy's quotas, which cost storage only.
    `logged`       events of the usage log; None derives them from `log` and `log_sample`, as in a policy.
    `reads`        of single items: peeks, users and plans that the cache did not hold, pages of a query.
    `repeated`     of the refused checks, those that the denial cache answered from memory.
    `coalesced`    of the admitted checks, those that rode in another's write: many at once on one key.
    `leased`       of the admitted checks, those of policies with a lease of so many units, `lease`.
    `second`       of the written checks, those that took a second write, because what was remembered was out of date.
    `tasks`        of the sidecar on Fargate behind a load balancer, of `vcpu` and `memory` (GB) each.
    """

    checks: int
    denied: Fraction = Fraction(0)
    users: int = 0
    actions: int = 1
    windows: int = 1
    logged: int | None = None
    log: LogMode = "none"
    log_sample: Fraction = Fraction(1)
    days_kept: int = 90
    event_bytes: int = 300
    reads: int = 0
    repeated: Fraction = Fraction(1, 2)
    coalesced: Fraction = Fraction(0)
    leased: Fraction = Fraction(0)
    lease: int = 10
    second: Fraction = Fraction(2, 100)
    tasks: int = 0
    vcpu: Fraction = Fraction(1, 2)
    memory: Fraction = Fraction(1)

    def __post_init__(self) -> None:
        if self.log not in get_args(LogMode):
            raise ConfigError("log", f"unknown value {self.log!r}; use one of {', '.join(get_args(LogMode))}")
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name in _SHARES and not 0 <= value <= 1:
                raise ConfigError(each.name, f"must be a share between 0 and 1, not {value}")
            if each.name in _AT_LEAST_ONE and value < 1:
                raise ConfigError(each.name, f"must be at least 1, not {value}")
            if isinstance(value, int | Fraction) and value < 0:
                raise ConfigError(each.name, f"must not be negative: {value}")

    @property
    def events(self) -> Fraction:
        """Of the usage log."""
        if self.logged is not None:
            return Fraction(self.logged)
        denied = self.checks * self.denied
        kept = {"allowed": self.checks - denied, "denied": denied * self.log_sample}
        kept["all"] = kept["allowed"] + kept["denied"]
        return kept.get(self.log, Fraction(0))


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
