"""`Policy`: a named rule. Which requests it is about, which quotas hold, and what happens when the store is gone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from inspect import iscoroutinefunction
from typing import Any, Literal, Protocol, TypeAlias, cast, get_args

from ratelimit.errors import ConfigError, InvalidAction, InvalidQuota
from ratelimit.names import check_action
from ratelimit.quota import Quotas, QuotasLike, to_quotas

AlgorithmName: TypeAlias = Literal["fixed_window", "sliding_window", "gcra"]
Mode: TypeAlias = Literal["enforce", "shadow"]
OnUnavailable: TypeAlias = Literal["allow", "deny", "local"]
Response: TypeAlias = Any
"""What it has been answered with: of a Starlette `Response`, the status and the headers."""
Count: TypeAlias = "Literal['all', 'success', 'failure'] | Callable[[Response], bool]"
_COUNTS = ("all", "success", "failure")
Log: TypeAlias = Literal["all", "allowed", "denied", "none"]

Lease: TypeAlias = "int | Literal['auto'] | None"

Request: TypeAlias = Any
"""What a surface hands to a policy's callables: a Starlette `HTTPConnection` in the ASGI middleware."""
Cost: TypeAlias = "int | Callable[[Request], int | Awaitable[int]]"
UserFrom: TypeAlias = "str | Callable[[Request], str | Awaitable[str | None] | None]"
Exempt: TypeAlias = "str | Callable[[Request], bool | Awaitable[bool]]"


class QuotaSource(Protocol):
    """Who knows the quotas of a user's plan. `ratelimit.directory.Directory` is one."""

    async def quotas_for(self, user: str, action: str) -> Quotas | None:
        """The user's quotas for an action; None where the policy's own hold. Never raises for a store that fails."""
        ...


@dataclass(frozen=True, slots=True, init=False)
class Policy:
    """A named rule; the name is the action it limits. Raises `ConfigError` with the path to a bad value.

    `quotas`          `"5/day"`, `"100/hour; 1000/day"`, a `Quota`, a list of them, or `"unlimited"`.
    `algorithm`       `"fixed_window"` (aligned to UTC), `"sliding_window"` or `"gcra"` (a token bucket).
    `mode`            `"shadow"` decides and records, but never blocks.
    `on_unavailable`  the answer when the store gives none in time: `"allow"`, `"deny"`, or `"local"`, which counts in
                      this process until the store is back.
    `match`           the requests a surface checks by itself: `"POST /hints"`, `"/api/**"`; none for a policy that
                      views ask for (`limited("hint")`, `limiter.check`).
    `cost`            units a request takes: a number, or a function of the request (sync or async).
    `count`           `"success"` gives back what ended in a status of 400 or more, `"failure"` what did not; a function
                      of the response (its `status_code` and `headers`), what it returns False for.
    `user_from`       where the surface finds the user, in order (`"user"`, `"header:x-api-key"`, `"cookie:sid"`,
                      `"address"`, or a function of the request); the surface's own order where empty.
    `exempt`          requests never checked: patterns as in `match`, or functions of the request.
    `lease`           units that a process may take in advance and grant from memory, or `"auto"`: for keys hotter than
                      one item can be written. Fixed windows only: units kept back would not age in the others.
    `alert_at`        parts of a limit (`[0.8, 1.0]`) at which the limiter's `on_alert` is called.
    `log`             which requests a surface writes to its usage log: `"all"`, `"allowed"`, `"denied"` or `"none"`.
    `log_sample`      of the refused requests, the part that is written: 0.01 is one in a hundred.
    """

    name: str
    quotas: Quotas
    algorithm: AlgorithmName
    mode: Mode
    on_unavailable: OnUnavailable
    match: tuple[str, ...]
    cost: Cost
    count: Count
    user_from: tuple[UserFrom, ...]
    exempt: tuple[Exempt, ...]
    lease: Lease
    alert_at: tuple[float, ...]
    log: Log
    log_sample: float

    def __init__(
        self,
        name: str,
        quotas: QuotasLike,
        *,
        algorithm: AlgorithmName = "fixed_window",
        mode: Mode = "enforce",
        on_unavailable: OnUnavailable = "local",
        match: str | Iterable[str] = (),
        cost: Cost = 1,
        count: Count = "all",
        user_from: UserFrom | Iterable[UserFrom] = (),
        exempt: Exempt | Iterable[Exempt] = (),
        lease: Lease = None,
        alert_at: Iterable[float] = (),
        log: Log = "all",
        log_sample: float = 1.0,
    ) -> None:
        values: dict[str, object] = {
            "name": _name(name),
            "quotas": _quotas(quotas, algorithm),
            "algorithm": _one_of("algorithm", algorithm, get_args(AlgorithmName)),
            "mode": _one_of("mode", mode, get_args(Mode)),
            "on_unavailable": _one_of("on_unavailable", on_unavailable, get_args(OnUnavailable)),
            "match": _several("match", match, functions=False),
            "cost": _cost(cost),
            "count": _count(count),
            "user_from": _several("user_from", user_from, functions=True),
            "exempt": _several("exempt", exempt, functions=True),
            "lease": _lease(lease, algorithm),
            "alert_at": _thresholds(alert_at),
            "log": _one_of("log", log, get_args(Log)),
            "log_sample": _part("log_sample", log_sample),
        }
        for field, value in values.items():
            object.__setattr__(self, field, value)


def _name(name: str) -> str:
    try:
        return check_action(name)
    except InvalidAction as error:
        raise ConfigError("name", str(error)) from error


def _quotas(value: QuotasLike, algorithm: str) -> Quotas:
    try:
        quotas = to_quotas(value)
    except ConfigError as error:
        raise error.under("quotas") from error
    except InvalidQuota as error:
        raise ConfigError("quotas", str(error)) from error
    for number, quota in enumerate(quotas):
        if quota.burst is not None and algorithm != "gcra":
            raise ConfigError(f"quotas[{number}]", f"burst needs algorithm = 'gcra', not {algorithm!r}")
    return quotas


def _one_of(path: str, value: object, choices: tuple[str, ...]) -> str:
    if isinstance(value, str) and value in choices:
        return value
    near = get_close_matches(str(value), choices, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(map(repr, choices))}"
    raise ConfigError(path, f"unknown value {value!r}; {hint}")


def _several(path: str, value: object, *, functions: bool) -> tuple[object, ...]:
    items = [value] if isinstance(value, str) or callable(value) else value
    if not isinstance(items, Iterable):
        raise ConfigError(path, f"expected text or a list of text, not {value!r}")
    items = tuple(items)
    expected = "text or a function" if functions else "text"
    for number, item in enumerate(items):
        if not (isinstance(item, str) and item.strip()) and not (functions and callable(item)):
            raise ConfigError(f"{path}[{number}]", f"expected {expected}, not {item!r}")
    return cast(tuple[object, ...], items)


def _cost(cost: Cost) -> Cost:
    if callable(cost) or (type(cost) is int and cost >= 1):
        return cost
    raise ConfigError("cost", f"must be a whole number of at least 1, or a function of the request, not {cost!r}")


def _count(count: Count) -> Count:
    if iscoroutinefunction(count):
        raise ConfigError("count", "must be a plain function of the response: it is called as the answer begins")
    return count if callable(count) else cast(Count, _one_of("count", count, _COUNTS))


def _lease(lease: Lease, algorithm: str) -> Lease:
    if lease is None:
        return None
    if lease != "auto" and (type(lease) is not int or lease < 1):
        raise ConfigError("lease", f"must be a whole number of at least 1, or 'auto', not {lease!r}")
    if algorithm != "fixed_window":
        raise ConfigError("lease", f"needs algorithm = 'fixed_window', not {algorithm!r}")
    return lease


def _thresholds(values: object) -> tuple[float, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ConfigError("alert_at", f"must be a list of parts of the limit, as in [0.8, 1.0], not {values!r}")
    thresholds = tuple(values)
    for number, value in enumerate(thresholds):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 10:
            raise ConfigError(f"alert_at[{number}]", f"must be a part of the limit, as in 0.8, not {value!r}")
    return thresholds


def _part(path: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ConfigError(path, f"must be a part from 0 to 1, not {value!r}")
    return float(value)
