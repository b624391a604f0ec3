"""`TopKeys`: the keys that come most often, in bounded memory; and those of several processes together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from msgspec import Struct

UserAction: TypeAlias = tuple[str, str]


class KeyCount(Struct, frozen=True, array_like=True, gc=False):
    """A key came `count` times at most, and `count - error` times at least."""

    user: str
    action: str
    count: int
    error: int


class KeyCounts(Struct, frozen=True, array_like=True):
    """Some keys, and how often any other one came at most."""

    keys: Sequence[KeyCount] = ()
    floor: int = 0

    def top(self, number: int) -> list[KeyCount]:
        """Return those that came most often for certain, beginning with the first."""
        return sorted(self.keys, key=lambda key: (key.count - key.error, key.count), reverse=True)[:number]


def added(counts: Iterable[KeyCounts]) -> KeyCounts:
    """Return the counts of several streams together (Cafaro, Pulimeno, Tempesta 2016): the bounds hold for the sums.

    A key that one of them does not name may have come there as often as its floor says.
    """
    floor = 0
    sums: dict[UserAction, tuple[int, int]] = {}
    for each in counts:
        floor += each.floor
        for key in each.keys:
            count, error = sums.get((key.user, key.action), (0, 0))
            sums[key.user, key.action] = count + key.count - each.floor, error + key.error - each.floor
    return KeyCounts([KeyCount(*key, count + floor, error + floor) for key, (count, error) in sums.items()], floor)


class TopKeys:
    """Count the keys that come most often, twice `size` of them at most, in two periods: the present one and the one
    before.

    A key that came more often than the `size`-th part of all that came in a period is among those that are counted, and
    no error is greater than that part.

    As in lossy counting (Manku, Motwani: Approximate Frequency Counts over Data Streams, 2002), a key that is dropped
    leaves its count behind as the error of those that come after it. But it is the table that is bounded: where there
    are twice as many keys as are to be kept, the half with the smaller counts is dropped, and the greatest of these is
    the floor, at which the count of a key begins that is not in the table.

    Why `size * floor` is at most the number of all that came: that and the sum of what counts are above the floor is.
    One more adds 1 to the sum. And where the floor rises, to the count of the key in place `size + 1`, each of the
    `size` keys before that one gives up as much as it rises.
    """

    __slots__ = ("_before", "_counts", "_errors", "_floor", "_most", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self._most = 2 * size
        self._before = KeyCounts()
        self._begin()

    def _begin(self) -> None:
        self._counts: dict[UserAction, int] = {}
        self._errors: dict[UserAction, int] = {}
        """Of those that were kept when others were dropped; those that came since have the floor's."""
        self._floor = 0
        """No key that was dropped has come more often."""

    def add(self, key: UserAction) -> None:
        counts = self._counts
        count = counts.get(key)
        if count is not None:
            counts[key] = count + 1
            return
        counts[key] = self._floor + 1
        if len(counts) > self._most:
            self._drop()

    def _drop(self) -> None:
        floor, errors = self._floor, self._errors
        self._floor = lowest = sorted(self._counts.values())[-self.size - 1]
        self._counts = {key: count for key, count in self._counts.items() if count > lowest}
        self._errors = {key: errors.get(key, floor) for key in self._counts}

    def rotate(self) -> None:
        """Begin another period: the one before the present one is forgotten."""
        self._before = self._present()
        self._begin()

    def read(self) -> KeyCounts:
        return added((self._before, self._present()))

    def _present(self) -> KeyCounts:
        errors, floor = self._errors, self._floor
        return KeyCounts([KeyCount(*key, count, errors.get(key, floor)) for key, count in self._counts.items()], floor)
