"""`Policy`: a named rule. Which requests it is about, which quotas hold, and what happens when the store is gone."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import KW_ONLY, Field
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, NamedTuple, Protocol, TypeAlias

from ratelimit.errors import ConfigError, InvalidAction, InvalidQuota, no_policy
from ratelimit.names import check_action
from ratelimit.quota import Quota, Quotas, QuotasLike, to_quotas
from ratelimit.settings import (
    Converted,
    Setting,
    boolean,
    converting_dataclass,
    items,
    keep,
    number,
    numbers,
    one_of,
    patterns,
    setting,
    settings_of,
    texts,
    texts_or_functions,
    truth,
    unknown,
)

if TYPE_CHECKING:
    # What functions of a surface are given. Of a websocket's handshake it is an `HTTPConnection`, which has no body; of
    # a response, only its status and headers are known.
    from starlette.requests import Request
    from starlette.responses import Response

AlgorithmName: TypeAlias = Literal["fixed_window", "sliding_window", "gcra"]
Mode: TypeAlias = Literal["enforce", "shadow"]
OnUnavailable: TypeAlias = Literal["allow", "deny", "local"]
Count: TypeAlias = "Literal['all', 'success', 'failure'] | Callable[[Response], bool]"
Log: TypeAlias = Literal["all", "allowed", "denied", "none"]

Lease: TypeAlias = "int | Literal['auto'] | None"

Cost: TypeAlias = "int | Callable[[Request], int | Awaitable[int]]"
UserFrom: TypeAlias = "str | Callable[[Request], str | Awaitable[str | None] | None]"
Exempt: TypeAlias = "str | Callable[[Request], bool | Awaitable[bool]]"


MIN_HOLD_S: Final = 3
MAX_HOLD_S: Final = 3600


class QuotaSource(Protocol):
    """Who knows the quotas of a user's plan. `ratelimit.directory.Directory` is one."""

    async def quotas_for(self, user: str, action: str) -> Quotas | None:
        """The user's quotas for an action; None where the policy's own hold. Never raises for a store that fails."""
        ...


def _name(name: str) -> str:
    try:
        return check_action(name)
    except InvalidAction as error:
        raise ConfigError("", str(error)) from error


def _quotas(value: QuotasLike) -> Quotas:
    try:
        return to_quotas(value)
    except InvalidQuota as error:
        raise ConfigError("", str(error)) from error


def _quota_tables(value: object) -> object:
    """Read the tables of a file (`{limit = 5, window = "day"}`) as `Quota`; leave every other form as it is."""
    if isinstance(value, dict):
        return _quota_of(value, "")
    if isinstance(value, list | tuple) and any(isinstance(item, dict) for item in value):
        return [_quota_of(item, f"[{at}]") if isinstance(item, dict) else item for at, item in enumerate(value)]
    return value


def _quota_of(table: dict[str, Any], path: str) -> Quota:
    for name in table:
        if name not in ("limit", "window", "burst"):
            raise unknown(f"{path}.{name}" if path else name, name, ("limit", "window", "burst"))
    for name in ("limit", "window"):
        if name not in table:
            raise ConfigError(path, f"{name} is missing; write {{limit = 5, window = 'day'}}")
    if not isinstance(table["window"], str):
        where = f"{path}.window" if path else "window"
        raise ConfigError(where, f"expected text such as 'day', not {table['window']!r}")
    try:
        return Quota(table["limit"], table["window"], table.get("burst"))
    except InvalidQuota as error:
        raise ConfigError(path, str(error)) from error


def _shown_quotas(quotas: Quotas) -> object:
    return [str(quota) for quota in quotas] or "unlimited"


def _cost(cost: Cost) -> Cost:
    if callable(cost) or (type(cost) is int and cost >= 1):
        return cost
    raise ConfigError("", f"must be a whole number of at least 1, or a function of the request, not {cost!r}")


_count_name = one_of(("all", "success", "failure"))


def _count(count: Count) -> object:
    if iscoroutinefunction(count):
        raise ConfigError("", "must be a plain function of the response: it is called as the answer begins")
    return count if callable(count) else _count_name(count)


def _lease(lease: Lease) -> Lease:
    if lease is not None and lease != "auto" and (type(lease) is not int or lease < 1):
        raise ConfigError("", f"must be a whole number of at least 1, or 'auto', not {lease!r}")
    return lease


def _thresholds(values: object) -> tuple[float, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ConfigError("", f"must be a list of parts of the limit, as in [0.8, 1.0], not {values!r}")
    thresholds = tuple(values)
    for position, value in enumerate(thresholds):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 10:
            raise ConfigError(f"[{position}]", f"must be a part of the limit, as in 0.8, not {value!r}")
    return thresholds


def _hold(value: object) -> int:
    if type(value) is not int or not MIN_HOLD_S <= value <= MAX_HOLD_S:
        raise ConfigError("", f"must be whole seconds from {MIN_HOLD_S} to {MAX_HOLD_S}, not {value!r}")
    return value


def _share(value: object) -> float | None:
    if value is not None and _part(value) == 0:
        raise ConfigError("", "must be more than 0: a share of nothing lets nobody pass")
    return None if value is None else _part(value)


def _part(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ConfigError("", f"must be a part from 0 to 1, not {value!r}")
    return float(value)


class RefusalTemplate(NamedTuple):
    """How a refusal is answered."""

    body: str
    status: int = 429
    content_type: str = "text/plain; charset=utf-8"


DECIDED_ALONE: Final = "slots and reservations are decided alone"
PLACEHOLDERS: Final = ("policy", "limit", "remaining", "retry_after")
"""What may stand in the braces of a template's body."""
PLACEHOLDER: Final = re.compile(r"\{([a-z_]+)\}")
_CONTENT_TYPE: Final = re.compile(r"[!-~]+/[!-~][ -~]*")


def _refusal(value: object) -> RefusalTemplate | None:
    if value is None or isinstance(value, RefusalTemplate):
        return value
    table = {"body": value} if isinstance(value, str) else value
    if not isinstance(table, Mapping):
        raise ConfigError("", f"must be text, or a table such as {{status = 429, body = 'Slow down.'}}, not {value!r}")
    for name in table:
        if name not in RefusalTemplate._fields:
            raise unknown(str(name), str(name), RefusalTemplate._fields)
    if not isinstance(table.get("body"), str):
        raise ConfigError("body", f"expected the text of the answer, not {table.get('body')!r}")
    template = RefusalTemplate(**table)
    status: object = template.status
    if type(status) is not int or not 400 <= status <= 599:
        raise ConfigError("status", f"must be a status from 400 to 599, not {status!r}")
    content_type: object = template.content_type
    if not isinstance(content_type, str) or not _CONTENT_TYPE.fullmatch(content_type):
        raise ConfigError("content_type", f"expected one such as 'application/json', not {content_type!r}")
    for name in PLACEHOLDER.findall(template.body):
        if name not in PLACEHOLDERS:
            raise ConfigError("body", f"{{{name}}} stands for nothing; there are: {', '.join(PLACEHOLDERS)}")
    return template


def _shown_refusal(template: RefusalTemplate | None) -> object:
    return None if template is None else template._asdict()


@converting_dataclass
class Policy:
    """A named rule; the name is the action it limits. Raises `ConfigError` with the path to a bad value."""

    if TYPE_CHECKING:
        __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    name: str
    quotas: Converted[QuotasLike, Quotas]
    """`"5/day"`, `"100/hour; 1000/day"`, a `Quota`, a list of them, or `"unlimited"`."""
    _: KW_ONLY
    algorithm: AlgorithmName = setting("fixed_window", one_of(AlgorithmName))
    """`"fixed_window"` (aligned to UTC), `"sliding_window"` or `"gcra"` (a token bucket)."""
    mode: Mode = setting("enforce", one_of(Mode))
    """`"shadow"` decides and records, but never blocks."""
    on_unavailable: OnUnavailable = setting("local", one_of(OnUnavailable))
    """The answer when the store gives none in time: `"allow"`, `"deny"`, or `"local"`, which counts in this process
    until the store is back."""
    match: Converted[str | Iterable[str], tuple[str, ...]] = setting((), texts, patterns)
    """The requests a surface checks by itself: `"POST /hints"`, `"/api/**"`; none for a policy that views ask for
    (`limited("hint")`, `limiter.check`)."""
    cost: Cost = setting(1, _cost, number)
    """Units a request takes: a number, or a function of the request (sync or async)."""
    count: Count = setting("all", _count)
    """`"success"` gives back what ended in a status of 400 or more, `"failure"` what did not; a function of the
    response (its `status_code` and `headers`), what it returns False for."""
    user_from: Converted[UserFrom | Iterable[UserFrom], tuple[UserFrom, ...]] = setting((), texts_or_functions, items)
    """Where the surface finds the user, in order (`"user"`, `"header:x-api-key"`, `"cookie:sid"`, `"address"`, or a
    function of the request); the surface's own order where empty."""
    exempt: Converted[Exempt | Iterable[Exempt], tuple[Exempt, ...]] = setting((), texts_or_functions, patterns)
    """Requests never checked: patterns as in `match`, or functions of the request."""
    lease: Lease = setting(None, _lease, number)
    """Units that a process may take in advance and grant from memory, or `"auto"`: for keys hotter than one item can be
    written. Fixed windows only: units kept back would not age in the others."""
    hold: int = setting(30, _hold, number)
    """Seconds for which a slot or a reservation outlives a process that has died with it, and at most a quarter more.
    Whoever lives renews what it holds three times in this time."""
    together: Converted[str | Iterable[str], tuple[str, ...]] = setting((), texts, items)
    """Policies that a request has to pass with this one, each for the user that its own `user_from` says: all of them
    spend, or none. They take what this one costs, unless they have a `cost`, and need no `match`."""
    share: float | None = setting(None, _share, number)
    """Beside the quotas, a part of those of the first policy in `together`: 0.2 is a fifth of them."""
    reserve: bool = setting(False, truth, boolean)
    """Whether the units of a request are reserved until its answer has ended: what it turns out not to have used, as
    `X-RateLimit-Cost` says, or the app, goes back, and so does all of it if this process dies meanwhile."""
    refusal: Converted[RefusalTemplate | Mapping[str, Any] | str | None, RefusalTemplate | None] = setting(
        None, _refusal, shown=_shown_refusal
    )
    """How a request is answered that is refused: a text, or `{status = 429, content_type = "text/html", body = "…"}`.
    `{retry_after}` (whole seconds), `{limit}`, `{remaining}` and `{policy}` are filled in. The surface's own answer
    where there is none, and where the quota could not be checked."""
    alert_at: Converted[Iterable[float], tuple[float, ...]] = setting((), _thresholds, numbers)
    """Parts of a limit (`[0.8, 1.0]`) at which the limiter's `on_alert` is called."""
    log: Log = setting("all", one_of(Log))
    """Which requests a surface writes to its usage log: `"all"`, `"allowed"`, `"denied"` or `"none"`."""
    log_sample: float = setting(1.0, _part, number)
    """Of the refused requests, the part that is written: 0.01 is one in a hundred."""
    timeline: bool = setting(False, truth, boolean)
    """Whether the events of the action are also listed over all users (`usage timeline`): each costs a write unit more,
    and the table needs its second index, `GSI2`."""

    @property
    def holds(self) -> bool:
        """Return whether a request holds what it takes, a slot or a reservation, until its answer has ended."""
        return self.reserve or any(quota.is_concurrent for quota in self.quotas)

    def __post_init__(self) -> None:
        keep(self, "name", _name)
        for name, each in POLICY_SETTINGS.items():
            keep(self, name, each.check)
        for position, quota in enumerate(self.quotas):
            if quota.burst is not None and self.algorithm != "gcra":
                raise ConfigError(f"quotas[{position}]", f"burst needs algorithm = 'gcra', not {self.algorithm!r}")
        if self.share is not None and not self.together:
            raise ConfigError("share", "needs together = ['NAME'], the policy of which it is a share")
        if self.lease is not None and self.algorithm != "fixed_window":
            raise ConfigError("lease", f"needs algorithm = 'fixed_window', not {self.algorithm!r}")
        if self.lease is not None and self.reserve:
            raise ConfigError("reserve", "goes without lease: units taken in advance are not reserved")
        if self.lease is not None and any(quota.is_concurrent for quota in self.quotas):
            raise ConfigError("lease", "needs quotas per time: slots are not taken in advance")


def timelines_of(policies: Iterable[Policy]) -> list[str]:
    """Return the actions whose events are on a timeline."""
    return [policy.name for policy in policies if policy.timeline]


def check_together(policies: Mapping[str, Policy]) -> None:
    """Raise `ConfigError` where a policy names one that there is not, or one that leads back to it."""
    for name in policies:
        members_of(policies, name)


def check_costs(policies: Mapping[str, Policy]) -> None:
    """Raise `ConfigError` where a policy matches requests of which none could ever pass. A quota of 0 means it so."""
    for name, policy in policies.items():
        for other in members_of(policies, name) if policy.match else ():
            payer = name if policies[other].cost == 1 else other
            cost = policies[payer].cost
            for quota in policies[other].quotas:
                if isinstance(cost, int) and not quota.is_concurrent and 0 < (quota.burst or quota.limit) < cost:
                    of = "" if other == payer else f", the quota of {other!r}"
                    raise ConfigError(f"policies.{payer}.cost", f"{cost} can never fit {quota}{of}: nothing would pass")


def check_usable(policies: Mapping[str, Policy], quotas: Mapping[str, Quotas]) -> None:
    """Raise `ConfigError` for quotas of a plan, or of a user, that the policies of their actions cannot keep."""
    joint = {other for name, policy in policies.items() if policy.together for other in members_of(policies, name)}
    for action, several in quotas.items():
        if action in joint and any(quota.is_concurrent for quota in several):
            problem = f"{action!r} is decided together with other policies, and {DECIDED_ALONE}"
            raise ConfigError(f"quotas.{action}", problem)


def members_of(policies: Mapping[str, Policy], name: str) -> list[str]:
    """Return what is decided with a policy: itself, and all that it names or those name. Raises `ConfigError`."""
    found: list[str] = []

    def add(one: str, above: tuple[str, ...]) -> None:
        if one not in found:
            found.append(one)
        for place, other in enumerate(policies[one].together):
            path = f"policies.{one}.together[{place}]"
            if other not in policies:
                raise ConfigError(path, no_policy(other, policies))
            if other in (*above, one):
                raise ConfigError(path, f"leads back to {other!r}, which names this one")
            if policies[one].holds or policies[other].holds:
                raise ConfigError(path, f"{DECIDED_ALONE}: leave that policy out")
            add(other, (*above, one))

    add(name, ())
    return found


_QUOTAS: Final = Setting(_quotas, from_file=_quota_tables, shown=_shown_quotas)
POLICY_SETTINGS: Final = {"quotas": _QUOTAS, **settings_of(Policy)}
