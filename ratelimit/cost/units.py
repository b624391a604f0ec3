"""`Workload`: what a month brings, in numbers that somebody can know or guess; `Units`: what DynamoDB bills for it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from typing import Final, Literal, TypeAlias, get_args

from ratelimit.errors import ConfigError

LogMode: TypeAlias = Literal["all", "allowed", "denied", "none"]

_AMOUNT: Final = re.compile(r"([0-9]+(?:[_,][0-9]{3})*|[0-9]*)(\.[0-9]+)?\s*([kKmMgGbB]?)")
_NUMBER: Final = r"[0-9]+(?:\.[0-9]+)?|\.[0-9]+"
_SHARE: Final = re.compile(rf"({_NUMBER})\s*(%?)")
_SCALES: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}
_MOST: Final = 10**15
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
_SHARES: Final = ("denied", "repeated", "coalesced", "leased", "second", "log_sample", "timeline")
_REFUSALS: Final = "denial cache"
_AT_LEAST_ONE: Final = ("lease", "actions", "event_bytes", "replicas")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A month. Shares are parts of 1. Raise `ConfigError` naming the bad number.

    `checks`       asked for, the refused ones included.
    `denied`       of them.
    `users`        that have counters, and `actions` of each; `windows` in a policy's quotas, which cost storage only.
    `logged`       events of the usage log; None derives them from `log` and `log_sample`, as in a policy.
    `timeline`     of the events, those of policies with `timeline = true`.
    `reads`        of single items: peeks, users and plans that the cache did not hold, pages of a query.
    `repeated`     of the refused checks, those that the denial cache answered from memory.
    `coalesced`    of the admitted checks, those that rode in another's write: many at once on one key.
    `leased`       of the admitted checks, those of policies with a lease of so many units, `lease`.
    `second`       of the written checks, those that took a second write, because what was remembered was out of date.
    `replicas`     of the table, one in each of so many regions.
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
    timeline: Fraction = Fraction(0)
    days_kept: int = 90
    event_bytes: int = 300
    reads: int = 0
    repeated: Fraction = Fraction(1, 2)
    coalesced: Fraction = Fraction(0)
    leased: Fraction = Fraction(0)
    lease: int = 10
    second: Fraction = Fraction(2, 100)
    replicas: int = 1
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
        """Return the events of the usage log."""
        if self.logged is not None:
            return Fraction(self.logged)
        denied = self.checks * self.denied
        kept = {"allowed": self.checks - denied, "denied": denied * self.log_sample}
        kept["all"] = kept["allowed"] + kept["denied"]
        return kept.get(self.log, Fraction(0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """Write and read units of a month; and bytes, as they are once the log has run for as long as it keeps."""

    checks: Fraction = Fraction(0)
    """Written by checks that were admitted."""
    refused: Fraction = Fraction(0)
    """Writes that DynamoDB refused: each costs as if it had not."""
    events: Fraction = Fraction(0)
    timelines: Fraction = Fraction(0)
    """Written to the second index, for events that are on a timeline as well."""
    reads: Fraction = Fraction(0)
    state_gb: Fraction = Fraction(0)
    event_gb: Fraction = Fraction(0)
    spared: Mapping[str, Fraction] = field(default_factory=dict)
    """Writes that did not happen, by what spared them."""

    @property
    def writes(self) -> Fraction:
        """Return all of them."""
        return self.checks + self.refused + self.events + self.timelines


def replicated(units: Units, replicas: int) -> Units:
    """Return what the same writes come to on a table with so many replicas: each is billed in every region, but for
    those that were refused, and every region keeps all of it."""
    return replace(
        units,
        checks=units.checks * replicas,
        events=units.events * replicas,
        timelines=units.timelines * replicas,
        state_gb=units.state_gb * replicas,
        event_gb=units.event_gb * replicas,
        spared={name: writes * (1 if name == _REFUSALS else replicas) for name, writes in units.spared.items()},
    )


def units_of(workload: Workload) -> Units:
    """Return what a workload comes to."""
    denied = workload.checks * workload.denied
    admitted = workload.checks - denied
    leased = workload.leased * (1 - Fraction(1, workload.lease))
    after_leases = admitted * (1 - leased)
    written = after_leases * (1 - workload.coalesced)
    events = workload.events * -(-workload.event_bytes // _WRITE_UNIT)
    return Units(
        checks=written * (1 + workload.second),
        refused=denied * (1 - workload.repeated),
        events=events,
        timelines=events * workload.timeline,
        reads=Fraction(workload.reads),
        state_gb=state_gb(workload),
        event_gb=event_gb(workload.events * (1 + workload.timeline), workload),
        spared={
            _REFUSALS: denied * workload.repeated,
            "leases": (admitted - after_leases) * (1 + workload.second),
            "coalescing": (after_leases - written) * (1 + workload.second),
        },
    )


def state_gb(workload: Workload) -> Fraction:
    """Return the storage of the counters: one item for each user and action."""
    item = _STATE_BYTES + _WINDOW_BYTES * workload.windows + _OVERHEAD
    return Fraction(workload.users * workload.actions * item, _GB)


def event_gb(events: Fraction, workload: Workload) -> Fraction:
    """Return the storage of all events that are kept at a time."""
    return events / _DAYS * workload.days_kept * (workload.event_bytes + _OVERHEAD) / _GB


def amount(name: str, text: str) -> int:
    """Read a whole number of at least 0: `1500`, `1_500`, `1.5k`, `50M`, `2G`. Raise `ConfigError` on `name`."""
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
    """Read a part of the whole, 0 to 1: `20%`, `0.2`. Raise `ConfigError` on `name`."""
    match = _SHARE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(name, f"{text!r} is no share; write it like 20% or 0.2")
    found = Fraction(match[1]) / (100 if match[2] else 1)
    if found > 1:
        hint = f"; did you mean {text.strip()}%?" if not match[2] and found <= 100 else ""
        raise ConfigError(name, f"{text!r} is more than the whole, 100%{hint}")
    return found


def number(name: str, text: str) -> Fraction:
    """Read a number of at least 0: `2`, `0.25`. Raise `ConfigError` on `name`."""
    if re.fullmatch(_NUMBER, text.strip()) is None:
        raise ConfigError(name, f"{text!r} is no number; write it like 2 or 0.5")
    return Fraction(text.strip())


def in_short(number: Fraction | int) -> str:
    """Write `50M`, `1.5k`, `12`: three digits, and more only beyond 999G."""
    for letter, scale in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= scale:
            whole = f"{round(number / scale):,}"
            return (f"{float(number / scale):.3g}" if number < 999 * scale else whole) + letter
    return f"{float(number):.3g}"
