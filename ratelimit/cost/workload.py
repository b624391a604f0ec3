"""`Workload`: what a month brings, in numbers that somebody can know or guess."""

from __future__ import annotations

from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Final, Literal, TypeAlias, get_args

from ratelimit.errors import ConfigError

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
