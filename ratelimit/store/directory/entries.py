"""`Plan` and `User`: who may do how much. Frozen values, checked when made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import MappingProxyType
from typing import Final, Literal, TypeAlias, get_args

from ratelimit.errors import ConfigError, InvalidAction, InvalidQuota, InvalidUser
from ratelimit.names import UserId, check_action, check_user
from ratelimit.quota import Quotas, QuotasLike, to_quotas
from ratelimit.store.directory.identity import Identity

Role: TypeAlias = Literal["user", "admin"]

MAX_ACTIONS: Final = 200
"""Actions in one plan, or overridden for one user: an entry is read whole."""
MAX_IDENTITIES: Final = 20
"""Of one user: they are written with the user in one transaction."""


@dataclass(frozen=True, slots=True, init=False)
class Plan:
    """Named quotas per action. Raises `ConfigError` with the path to a bad value (`quotas.hint`).

    `quotas`   per action: `"5/day"`, `"100/hour; 1000/day"`, a `Quota`, a list of them, `"unlimited"` or -1. An action
               that it does not name is left to the action's policy.
    """

    name: str
    quotas: Mapping[str, Quotas]
    version: int = field(compare=False)
    """Changes with every change in the store, which sets it; 0 for one that was not read from there."""

    def __init__(self, name: str, quotas: Mapping[str, QuotasLike], *, version: int = 0) -> None:
        object.__setattr__(self, "name", check_plan("name", name))
        object.__setattr__(self, "quotas", _quotas(quotas))
        object.__setattr__(self, "version", version)


@dataclass(frozen=True, slots=True, init=False)
class User:
    """One user, as far as limits are concerned. Raises `ConfigError` with the path to a bad value.

    `plan`         the name of the plan subscribed to; it need not exist, and then the policies' own quotas hold.
    `quotas`       per action, over those of the plan.
    `role`         `"admin"` is unlimited, but for actions in `quotas`.
    `active`       False refuses every check.
    `identities`   e-mails and digests of API keys that this user, and no other, is found by.
    """

    id: str
    plan: str | None
    quotas: Mapping[str, Quotas]
    role: Role
    active: bool
    identities: tuple[Identity, ...]
    version: int = field(compare=False)
    """As `Plan.version`."""

    def __init__(
        self,
        id: UserId,  # what everybody calls it
        *,
        plan: str | None = None,
        quotas: Mapping[str, QuotasLike] = MappingProxyType({}),
        role: Role = "user",
        active: bool = True,
        identities: Iterable[Identity] = (),
        version: int = 0,
    ) -> None:
        values: dict[str, object] = {
            "id": _id(id),
            "plan": None if plan is None else check_plan("plan", plan),
            "quotas": _quotas(quotas),
            "role": _role(role),
            "active": _boolean("active", active),
            "identities": _identities(identities),
            "version": version,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)


def check_plan(path: str, name: str) -> str:
    """A plan's name is bounded as an action is. Raises `ConfigError`."""
    try:
        return check_action(name)
    except InvalidAction as error:
        raise ConfigError(path, str(error).replace("the action", "the plan's name", 1)) from error


def _id(user: UserId) -> str:
    try:
        return check_user(user)
    except InvalidUser as error:
        raise ConfigError("id", str(error)) from error


def _quotas(value: Mapping[str, QuotasLike]) -> Mapping[str, Quotas]:
    if not isinstance(value, Mapping):
        raise ConfigError("quotas", f"expected quotas by action, as in {{'hint': '5/day'}}, not {value!r}")
    if len(value) > MAX_ACTIONS:
        raise ConfigError("quotas", f"{len(value)} actions are named, and {MAX_ACTIONS} are the most")
    found: dict[str, Quotas] = {}
    for action, quotas in value.items():
        try:
            found[check_action(action)] = to_quotas(quotas)
        except InvalidAction as error:
            raise ConfigError("quotas", str(error)) from error
        except ConfigError as error:
            raise error.under(f"quotas.{action}") from error
        except InvalidQuota as error:
            raise ConfigError(f"quotas.{action}", str(error)) from error
    return MappingProxyType(found)


def _role(role: Role) -> Role:
    if role in (roles := get_args(Role)):
        return role
    near = get_close_matches(str(role), roles, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(map(repr, roles))}"
    raise ConfigError("role", f"unknown value {role!r}; {hint}")


def _boolean(path: str, value: bool) -> bool:
    if type(value) is not bool:
        raise ConfigError(path, f"must be true or false, not {value!r}")
    return value


def _identities(value: Iterable[Identity]) -> tuple[Identity, ...]:
    identities = tuple(dict.fromkeys(value))
    for number, identity in enumerate(identities):
        if not isinstance(identity, Identity):
            raise ConfigError(f"identities[{number}]", "expected Identity.email(address) or Identity.api_key(key)")
    if len(identities) > MAX_IDENTITIES:
        raise ConfigError("identities", f"{len(identities)} are named, and {MAX_IDENTITIES} are the most")
    return identities
