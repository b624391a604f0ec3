"""`Mapping`: which table and which column of a source mean what. The defaults are the relational names of old.

[events]
table = "usage_log"             # a name, or several of which the first that exists is taken
user = "user_id"
time = "created_at"
timezone = "Europe/Berlin"      # of times without one; UTC by default
time_format = "%d/%m/%Y %H:%M"  # for times that are no ISO 8601, RFC 2822 or epoch

[users]
uuids = "dashed"                # ids without dashes get them, as in `str(user.pk)` of Django

[plans.quotas]                  # action = "column/window"
hint = "max_hints_per_day/day"

[actions]                       # old name = new name
execute = "execution"
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterable, Iterator, Sequence
from collections.abc import Mapping as AnyMapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, TypeAlias
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from ratelimit.errors import ConfigError, InvalidInput, nearest
from ratelimit.migrate.rows import Entity, is_asked, rows_of
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
    uuids: str = "plain"
    """What becomes of users' ids, in events too, of 32 hexadecimal digits: they stay so, or are `dashed`."""
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
    given: Names = ()
    """What the file says otherwise than the defaults, by its path (`events.cost`): it has to be there."""

    def columns(self, entity: str) -> dict[str, Names]:
        """Return the columns of an entity, by the path to where the mapping names them."""
        section = rows_of(entity)
        part = getattr(self, section)
        found = {f"{section}.{each.name}": getattr(part, each.name) for each in fields(part)}
        quotas = found.pop(f"{section}.quotas", {})
        return {path: names for path, names in found.items() if path.partition(".")[2] not in _NO_COLUMNS} | {
            f"{section}.quotas.{action}": (column.partition("/")[0],) for action, column in quotas.items()
        }

    def tables(self, entity: str) -> Names:
        """Return the tables of which the first that exists holds the entity."""
        names: Names = getattr(self, rows_of(entity)).table
        return names

    def is_given(self, path: str) -> bool:
        """Return whether the file says it, and not only the defaults."""
        return path in self.given


_NO_COLUMNS: Final = ("table", "timezone", "time_format", "uuids")
NEEDED: Final = ("events.user", "events.action", "events.time", "users.id", "plans.id")
"""What every row has to have."""
_SHOWN: Final = 40
_SECTIONS: Final = ("events", "users", "plans", "actions")
_TEXTS: Final = ("timezone", "time_format", "uuids")
_UUIDS: Final = ("plain", "dashed")


def read_mapping(path: Path | None) -> Mapping:
    """Read a mapping; the defaults where there is no file. Raises `ConfigError` with the path to a bad value."""
    if path is None:
        return Mapping()
    try:
        table = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError("--mapping", f"cannot read {path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError("--mapping", f"{path} is not valid TOML: {error}") from None
    return mapping_of(table)


def mapping_of(table: AnyMapping[str, Any]) -> Mapping:
    """Do as `read_mapping`, from what the file says."""
    _known("", table, _SECTIONS)
    for section, value in table.items():
        if not isinstance(value, dict):
            raise ConfigError(section, f"expected a table: [{section}], not {value!r}")
    start = Mapping()
    made = Mapping(
        events=_section("events", start.events, table.get("events", {})),
        users=_section("users", start.users, table.get("users", {})),
        plans=_section("plans", start.plans, table.get("plans", {})),
        actions=_actions(table.get("actions", {})),
    )
    return replace(made, given=tuple(_given(table, made, start)))


def _given(table: AnyMapping[str, Any], made: Mapping, start: Mapping) -> Iterator[str]:
    """Return them in order, as what is known of a migration depends on it."""
    for section in ("events", "users", "plans"):
        for key in table.get(section, {}):
            now, before = getattr(getattr(made, section), key), getattr(getattr(start, section), key)
            if key == "quotas":
                yield from (f"{section}.quotas.{action}" for action in now if now[action] != before.get(action))
            elif now != before or key in ("timezone", "uuids"):
                yield f"{section}.{key}"


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
    if (uuids := changes.get("uuids", "plain")) not in _UUIDS:
        raise ConfigError(f"{name}.uuids", f"expected 'plain' or 'dashed', not {uuids!r}")
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
            raise ConfigError(f"{path}.{key}" if path else key, f"unknown name; {nearest(key, names)}")


def first_of(names: Names, there: Iterable[str]) -> str | None:
    """Return the first of the names that is there; None where none is."""
    held = set(there)
    return next((name for name in names if name in held), None)


def absent(mapping: Mapping, entity: str, where: str, there: Collection[str], *, needed: bool = True) -> str:
    """Say what is wrong with the columns of an entity; empty where all that the mapping names are there.

    `needed` asks for those, too, that every row has to have, whoever named them.
    """
    columns = mapping.columns(entity)
    quotas = [path for path in columns if ".quotas." in path]
    for path, names in columns.items():
        wanted = mapping.is_given(path) or (needed and path in NEEDED)
        if wanted and first_of(names, there) is None:
            tried = ", ".join(map(repr, names))
            return f"{path}: {where} has no column {tried}{near(names, there)}; it has: {_list(there)}"
    if entity == "plans" and not any(first_of(columns[path], there) for path in quotas):
        tried = ", ".join(columns[path][0] for path in quotas)
        return (
            f"plans.quotas: {where} has no column of a quota (looked for: {tried}; it has: {_list(there)}); name them "
            "in a mapping, as in: [plans.quotas] hint = 'max_hints_per_day/day'"
        )
    return ""


def near(names: Iterable[str], there: Iterable[str]) -> str:
    """Return `; did you mean 'units'?` where one of those that are there is like one of the names."""
    lower = {each.lower(): each for each in there}
    for name in names:
        found = get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
        found = found or [each for each in lower if each.endswith(name.lower().rpartition(".")[2])][:1]
        if found:
            return f"; did you mean {lower[found[0]]!r}?"
    return ""


def unmapped(mapping: Mapping, entity: str, there: Iterable[str]) -> list[str]:
    """Return the columns from which nothing is read."""
    held = list(there)
    used = {first_of(names, held) for names in mapping.columns(entity).values()}
    return [name for name in held if name not in used]


def _list(names: Collection[str]) -> str:
    shown = list(names)[:_SHOWN]
    return ", ".join(shown) + (", …" if len(names) > len(shown) else "")


HELD: Final[tuple[Entity, ...]] = ("plans", "users", "events")
"""Entities that have rows of their own."""

Seen: TypeAlias = dict[str, tuple[Sequence[str], int | None]]
"""What a source has, by its name: the columns, where they are known, and the number of rows."""

# With an app's name before them, as Django and others have it: `api_usagelog`. The more telling first.
_PREFIXED: Final[dict[Entity, tuple[tuple[str, ...], ...]]] = {
    "plans": (("subscription_plan", "subscription_plans", "subscriptionplan", "subscriptionplans"), ("plan", "plans")),
    "users": (("user", "users"),),
    "events": (("usage_log", "usage_logs", "usagelog", "usagelogs"),),
}
_GUESSED: Final = ("user", "action", "time")
_MOST: Final = 20


def recognised(mapping: Mapping, kind: Entity, names: Collection[str]) -> str | None:
    """Return the one that holds the entity; None for none. Raises `InvalidInput` where several may."""
    lower: dict[str, str] = {}
    for name in names:
        lower.setdefault(name.lower(), name)
    wanted = mapping.tables(kind)
    if (exact := first_of(wanted, names) or first_of(wanted, lower)) is not None:
        return exact if exact in names else lower[exact]
    if mapping.is_given(f"{kind}.table"):
        return None
    for endings in _PREFIXED[kind]:
        pattern = re.compile(rf"(?:.+[_.-])?(?:{'|'.join(endings)})", re.IGNORECASE)
        found = sorted(name for name in names if pattern.fullmatch(name))
        if len(found) > 1:
            raise InvalidInput(
                f"several tables may hold the {kind}: {', '.join(found)}; name one in a mapping: "
                f'[{kind}] table = "{found[0]}"'
            )
        if found:
            return found[0]
    return None


def unknown_table(mapping: Mapping, wanted: Collection[str], found: Collection[str], there: Iterable[str]) -> str:
    """Say what is wrong where the mapping names a table that is not there; empty where it does not."""
    for kind in HELD:
        if is_asked(kind, wanted) and kind not in found and mapping.is_given(f"{kind}.table"):
            names, has = mapping.tables(kind), list(there)
            tried = " or ".join(map(repr, names))
            return f"{kind}.table: there is no {tried}{near(names, has)}; it has: {', '.join(has[:_MOST]) or 'nothing'}"
    return ""


def sketch(mapping: Mapping, seen: Seen) -> str:
    """Return what was seen, and a mapping to start from, as text."""
    if not seen:
        return "it has nothing at all"
    has = [f"{name} ({count:,} rows)" if count is not None else name for name, (_, count) in list(seen.items())[:_MOST]]
    more = f" and {len(seen) - _MOST} more" if len(seen) > _MOST else ""
    lines = "\n".join(_sketched(mapping, seen))
    return f"it has: {', '.join(has)}{more}; tell in a --mapping FILE what is where, beginning with:\n\n{lines}"


def _sketched(mapping: Mapping, seen: Seen) -> list[str]:
    table, (columns, _) = max(seen.items(), key=lambda pair: _likeness(mapping, pair[1][0]))
    lines = ["[events]", f'table = "{table}"']
    for name in _GUESSED:
        names = mapping.columns("events")[f"events.{name}"]
        found = first_of(names, columns)
        hint = f"  # one of: {', '.join(columns[:_MOST])}" if columns and found is None else ""
        lines.append(f'{name} = "{found or names[0]}"{hint}')
    return [*lines, "", "[users]", 'table = "…"', "", "[plans]", 'table = "…"']


def _likeness(mapping: Mapping, columns: Collection[str]) -> int:
    known: AnyMapping[str, tuple[str, ...]] = mapping.columns("events")
    return sum(first_of(names, columns) is not None for names in known.values())
