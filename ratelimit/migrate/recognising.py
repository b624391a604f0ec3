"""Which table, section or file of a source holds what, by its name; and what to say where none does."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final, TypeAlias

import msgspec

from ratelimit.errors import InvalidInput
from ratelimit.migrate.convert import shown
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


# `Nth`: rows without a key that say the same are several uses, told apart by counting them.

_REMEMBERED: Final = 100_000


class Nth:
    """Holds for rows up to 100,000 apart, read in the same order in every run."""

    def __init__(self) -> None:
        self._seen: OrderedDict[bytes, int] = OrderedDict()

    def of(self, row: Mapping[str, Any]) -> int:
        """How many that say the same came before."""
        digest = blake2b(shown(row).encode(errors="surrogatepass"), digest_size=16).digest()
        nth = self._seen.pop(digest, -1) + 1
        self._seen[digest] = nth
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return nth


# `Bursts`: how often the earlier layout may have lost an event, as it kept one a second for a user and action.


class Bursts(msgspec.Struct):
    """Counts the seconds in which events may have overwritten each other.

    Suspicious is a second beside another one of the same user and action, or with events of several actions. Items of a
    partition come in the order of time. All that it knows can be saved, as a pass may be broken off within a partition.
    """

    seconds: int = 0
    partition: str = ""
    last: dict[str, int] = {}
    """The last second of each action."""
    counted: list[int] = []
    """Of the last two seconds, those that are."""

    def saw(self, partition: str, action: str, second: int) -> None:
        """One more event."""
        if partition != self.partition:
            self.partition, self.last, self.counted = partition, {}, []
        self.counted = [each for each in self.counted if each >= second - 1]
        for other, before in self.last.items():
            if before == second or (other == action and before == second - 1):
                self._count(before)
                self._count(second)
        self.last[action] = second

    def _count(self, second: int) -> None:
        if second not in self.counted:
            self.counted.append(second)
            self.seconds += 1
