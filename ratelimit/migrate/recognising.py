"""Which table, section or file of a source holds what, by its name; and what to say where none does."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, TypeAlias

from ratelimit.errors import InvalidInput
from ratelimit.migrate.mapping import Mapping as Columns
from ratelimit.migrate.mapping import first_of, near
from ratelimit.migrate.rows import Entity

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


def recognised(mapping: Columns, kind: Entity, names: Collection[str]) -> str | None:
    """The one that holds the entity; None for none. Raises `InvalidInput` where several may."""
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


def unknown_table(mapping: Columns, wanted: Collection[str], found: Collection[str], there: Iterable[str]) -> str:
    """What is wrong where the mapping names a table that is not there; empty where it does not."""
    for kind in HELD:
        asked = not wanted or kind in wanted or (kind == "events" and "counters" in wanted)
        if asked and kind not in found and mapping.is_given(f"{kind}.table"):
            names, has = mapping.tables(kind), list(there)
            tried = " or ".join(map(repr, names))
            return f"{kind}.table: there is no {tried}{near(names, has)}; it has: {', '.join(has[:_MOST]) or 'nothing'}"
    return ""


def sketch(mapping: Columns, seen: Seen) -> str:
    """What was seen, and a mapping to start from, as text."""
    if not seen:
        return "it has nothing at all"
    has = [f"{name} ({count:,} rows)" if count is not None else name for name, (_, count) in list(seen.items())[:_MOST]]
    more = f" and {len(seen) - _MOST} more" if len(seen) > _MOST else ""
    lines = "\n".join(_section(mapping, seen))
    return f"it has: {', '.join(has)}{more}; tell in a --mapping FILE what is where, beginning with:\n\n{lines}"


def _section(mapping: Columns, seen: Seen) -> list[str]:
    table, (columns, _) = max(seen.items(), key=lambda pair: _likeness(mapping, pair[1][0]))
    lines = ["[events]", f'table = "{table}"']
    for name in _GUESSED:
        names = mapping.columns("events")[f"events.{name}"]
        found = first_of(names, columns)
        hint = f"  # one of: {', '.join(columns[:_MOST])}" if columns and found is None else ""
        lines.append(f'{name} = "{found or names[0]}"{hint}')
    return [*lines, "", "[users]", 'table = "…"', "", "[plans]", 'table = "…"']


def _likeness(mapping: Columns, columns: Collection[str]) -> int:
    known: Mapping[str, tuple[str, ...]] = mapping.columns("events")
    return sum(first_of(names, columns) is not None for names in known.values())
