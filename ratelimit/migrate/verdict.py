"""`Verdict`: what a verification has found."""

from __future__ import annotations

from typing import Final

import msgspec

from ratelimit.migrate.rows import Entity

_SHOWN: Final = 20


class Difference(msgspec.Struct, frozen=True):
    """One thing that is not the same."""

    entity: Entity
    what: str
    source: str
    target: str


class Compared(msgspec.Struct, kw_only=True):
    """How one entity stands."""

    source: int = 0
    target: int = 0
    missing: int = 0
    """In the source only."""
    more: int = 0
    """In the table only."""
    different: int = 0
    rejected: int = 0
    """Users whose e-mail another one has: on neither side."""
    compared: int = 0
    """Rows of which everything was compared."""


class Verdict(msgspec.Struct, kw_only=True):
    """All of it."""

    entities: dict[Entity, Compared] = {}
    differences: list[Difference] = []
    hidden: int = 0
    """Differences beyond those that are listed."""
    more_is_fine: bool = False
    notes: list[str] = []

    @property
    def same(self) -> bool:
        """Whether nothing is missing or different; and, unless that is fine, nothing more is in the table."""
        return not any(
            each.missing or each.different or (each.more and not self.more_is_fine) for each in self.entities.values()
        )

    def differs(self, entity: Entity, what: str, source: object, target: object) -> None:
        """One more."""
        if len(self.differences) < _SHOWN:
            self.differences.append(Difference(entity, what, str(source), str(target)))
        else:
            self.hidden += 1
