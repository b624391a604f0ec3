"""Exactness under load: what clients were granted, what the table has counted, what the log holds. All the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from loadtest.run.tally import Tally, Who

_MOST_TOLD: Final = 10


class Exactness(msgspec.Struct, frozen=True):
    """The books of a group, compared by user and action."""

    admitted: int
    counted: int
    """In the totals of the table."""
    logged: int
    """In the events of the log."""
    unknown: int
    """Requests without an answer: each may have been counted, and logged, or not."""
    differences: list[str]
    """The first ten that even those do not explain."""

    @property
    def holds(self) -> bool:
        """Whether the three agree."""
        return not self.differences


def compare_books(tally: Tally, books: Iterable[Mapping[str, Any]]) -> Exactness:
    """`books` are the servers'; on a table that they share, those of any one are everybody's."""
    totals: dict[Who, int] = {}
    events: dict[Who, int] = {}
    for book in books:
        for target, source in ((totals, book["totals"]), (events, book["events"])):
            for action, users in source.items():
                for user, units in users.items():
                    # A table that is shared says the same to all; without one, each server has users of its own.
                    target[action, user] = max(target.get((action, user), 0), units)
    known = tally.admitted
    differences = []
    for who in sorted({*known, *totals, *events}):
        least, most = known[who], known[who] + tally.failed[who]
        if not (least <= totals.get(who, 0) <= most and least <= events.get(who, 0) <= most):
            differences.append(
                f"{who[1]} {who[0]}: admitted {least}, counted {totals.get(who, 0)}, logged {events.get(who, 0)}"
            )
    return Exactness(
        sum(known.values()), sum(totals.values()), sum(events.values()), sum(tally.failed.values()),
        differences[:_MOST_TOLD],
    )  # fmt: skip
