"""`Mapping`: which table and which column of a source mean what. The defaults are the relational names of old.

[events]
table = "usage_log"             # a name, or several of which the first that exists is taken
user = "user_id"
time = "created_at"
timezone = "Europe/Berlin"      # of times without one; UTC by default
time_format = "%d/%m/%Y %H:%M"  # for times that are no ISO 8601, RFC 2822 or epoch

[plans.quotas]                  # action = "column/window"
hint = "max_hints_per_day/day"

[actions]                       # old name = new name
execute = "execution"
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from collections.abc import Mapping as AnyMapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, TypeAlias
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from ratelimit.errors import ConfigError, InvalidInput
from ratelimit.names import check_action
from ratelimit.quota import Window

Names: TypeAlias = tuple[str, ...]
"""Of which the first that exists is meant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventColumns:
    """Where usage events are."""

    table: Names = ("usage_log", "usage_logs", "usage", "events", "history")
    id: Names = ("id",)
    user: Names = ("user_id", "user")
    action: Names = ("action",)
    time: Names = ("created_at", "time", "timestamp")
    cost: Names = ("cost",)
    allowed: Names = ("allowed",)
    status: Names = ("status",)
    duration: Names = ("duration",)
    resource: Names = ("problem_id", "resource")
    request_id: Names = ("request_id",)
    metadata: Names = ("metadata",)
    timezone: str = "UTC"
    time_format: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class UserColumns:
    """Where users are. `hints` and `executions` style overrides are columns under `quotas`, as for plans."""

    table: Names = ("user", "users")
    id: Names = ("id",)
    plan: Names = ("subscription_plan_id", "plan_id", "plan")
    email: Names = ("email",)
    active: Names = ("is_active", "active")
    admin: Names = ("is_staff", "is_admin")
    quotas: AnyMapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanColumns:
    """Where plans are."""

    table: Names = ("subscription_plan", "subscription_plans", "plan", "plans")
    id: Names = ("id",)
    quotas: AnyMapping[str, str] = field(
        default_factory=lambda: {"hint": "max_hints_per_day/day", "execution": "max_executions_per_day/day"}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """All of it. `actions` renames; an action that it does not name keeps its name."""

    events: EventColumns = field(default_factory=EventColumns)
    users: UserColumns = field(default_factory=UserColumns)
    plans: PlanColumns = field(default_factory=PlanColumns)
    actions: AnyMapping[str, str] = field(default_factory=dict)


_SECTIONS: Final = ("events", "users", "plans", "actions")
_TEXTS: Final = ("timezone", "time_format")


def read_mapping(path: Path | None) -> Mapping:
    """The mapping of a file, the defaults where there is none. Raises `ConfigError` with the path to a bad value."""
    if path is None:
        return Mapping()
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise ConfigError("--mapping", f"cannot read {path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError("--mapping", f"{path} is not valid TOML: {error}") from None
    return mapping_of(table)


def mapping_of(table: AnyMapping[str, Any]) -> Mapping:
    """As `read_mapping`, from what the file says."""
    _known("", table, _SECTIONS)
    for section, value in table.items():
        if not isinstance(value, dict):
            raise ConfigError(section, f"expected a table: [{section}], not {value!r}")
    start = Mapping()
    return Mapping(
        events=_section("events", start.events, table.get("events", {})),
        users=_section("users", start.users, table.get("users", {})),
        plans=_section("plans", start.plans, table.get("plans", {})),
        actions=_actions(table.get("actions", {})),
    )


def _section(name: str, start: Any, table: AnyMapping[str, Any]) -> Any:
    _known(name, table, [each.name for each in fields(start)])
    changes: dict[str, Any] = {}
    for key, value in table.items():
        path = f"{name}.{key}"
        if key == "quotas":
            changes[key] = _quotas(path, value)
        elif key in _TEXTS:
            changes[key] = _text(path, value)
        else:
            changes[key] = _names(path, value)
    if "timezone" in changes:
        _zone(changes["timezone"])
    return replace(start, **changes)


def _quotas(path: str, value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ConfigError(path, "expected a table, as in {hint = 'max_hints_per_day/day'}")
    for action, text in value.items():
        column, slash, window = str(text).partition("/")
        try:
            check_action(action)
            Window.parse(window)
        except InvalidInput as error:
            raise ConfigError(f"{path}.{action}", str(error)) from None
        if not column or not slash:
            raise ConfigError(f"{path}.{action}", f"expected 'column/window', as in 'max_hints/day', not {text!r}")
    return dict(value)


def _actions(table: AnyMapping[str, Any]) -> dict[str, str]:
    for old, new in table.items():
        try:
            check_action(new)
        except InvalidInput as error:
            raise ConfigError(f"actions.{old}", str(error)) from None
    return dict(table)


def _names(path: str, value: object) -> Names:
    names = (value,) if isinstance(value, str) else value
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        return tuple(name for name in names if name)
    raise ConfigError(path, f"expected a name, or a list of names, not {value!r}")


def _text(path: str, value: object) -> str:
    if not isinstance(value, str):
        raise ConfigError(path, f"expected text, not {value!r}")
    return value


def _zone(name: str) -> None:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError):
        raise ConfigError("events.timezone", f"{name!r} is no time zone; write one like 'Europe/Berlin'") from None


def _known(path: str, table: Iterable[str], known: Iterable[str]) -> None:
    names = list(known)
    for key in table:
        if key not in names:
            near = get_close_matches(key, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names)}"
            raise ConfigError(f"{path}.{key}" if path else key, f"unknown name; {hint}")


def first_of(names: Names, there: Iterable[str]) -> str | None:
    """The first of the names that is there; None where none is."""
    held = set(there)
    return next((name for name in names if name in held), None)
