"""`top_of`: who used an action most on a day, from the exact counters. Reads the whole table, and keeps a few names."""

from __future__ import annotations

from contextlib import aclosing
from datetime import date
from heapq import nlargest
from itertools import chain
from typing import Final, NamedTuple

from ratelimit.algorithms.fields import day_field
from ratelimit.errors import InvalidInput
from ratelimit.names import Key
from ratelimit.store.scans import MAX_PARTS, Part, ScanPage, Scans, each_page, first_cursors
from ratelimit.store.write import Record
from ratelimit.usage.outlast import Outlast

MOST_TOP: Final = 1000


class TopUser(NamedTuple):
    """A user, and the units used on the day."""

    user: str
    total: int


async def top_of(
    scans: Scans, day: date, action: str, *, count: int, parts: int = 1, outlast: Outlast | None = None
) -> list[TopUser]:
    """The `count` users with the highest totals, the highest first; those with the same one by name.

    `parts` are read side by side: quicker, for the same price. Raises `StoreUnavailable`.
    """
    _check("count", count, MOST_TOP)
    _check("parts", parts, MAX_PARTS)
    field = day_field(day)
    patient = outlast or Outlast()

    async def ask(part: Part, cursor: str | None) -> ScanPage[tuple[Key, Record]]:
        return await patient.run(lambda: scans.records(field=field, cursor=cursor, part=part))

    best: list[TopUser] = []
    async with aclosing(each_page(ask, first_cursors(parts), of=parts)) as pages:
        async for _, page in pages:
            found = (
                TopUser(key.user, record[field])
                for key, record in page.entries
                if key.action == action and record[field] > 0
            )
            by_name = sorted(chain(best, found), key=lambda one: one.user)
            best = nlargest(count, by_name, key=lambda one: one.total)
    return best


def _check(name: str, value: int, most: int) -> None:
    if type(value) is not int or not 1 <= value <= most:
        raise InvalidInput(f"{name} must be a whole number from 1 to {most}, not {value!r}")
