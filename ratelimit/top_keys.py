"""`TopKeys`: the keys that came most often lately, in bounded memory however many there are, with the error of each.

Space-Saving (Metwally, Agrawal, El Abbadi: Efficient Computation of Frequent and Top-k Elements in Data Streams, 2005):
so many keys are counted, and one that is new takes the place and the count of the one that came least. Their counters
are kept in lists by count, as in the paper's Stream-Summary; but a key that comes again stays in its list, and is moved
only when a place is looked for there: what comes often costs an addition in a dict, and all of it is O(1), amortised.
"""

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
        return sorted(self.keys, key=_certain, reverse=True)[:number]


def _certain(key: KeyCount) -> tuple[int, int]:
    return key.count - key.error, key.count


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
    """Count keys, `size` of them at most, in two periods: the present one and the one before.

    A key that came more often than the `size`-th part of all that came in a period is among those that are counted.
    """

    __slots__ = ("_before", "_counts", "_errors", "_levels", "_lowest", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self._before = KeyCounts()
        self._begin()

    def _begin(self) -> None:
        self._counts: dict[UserAction, int] = {}
        self._errors: dict[UserAction, int] = {}
        self._levels: dict[int, list[UserAction]] = {}
        """The keys, each of them once, by a count that it has had: it may have come again since."""
        self._lowest = 0
        """No key has a smaller count, and none that was dropped had a greater one."""

    def add(self, key: UserAction) -> None:
        """Count one more."""
        counts = self._counts
        count = counts.get(key)
        if count is not None:
            counts[key] = count + 1
            return
        error = 0
        if len(counts) >= self.size:
            error = self._errors[key] = self._drop()
        counts[key] = error + 1
        self._levels.setdefault(error + 1, []).append(key)

    def _drop(self) -> int:
        """Drop a key with the smallest count, and return that."""
        levels = self._levels
        while True:
            level = levels.get(self._lowest)
            if not level:
                levels.pop(self._lowest, None)
                self._lowest += 1
                continue
            key = level.pop()
            count = self._counts[key]
            if count == self._lowest:
                del self._counts[key]
                self._errors.pop(key, None)
                return count
            levels.setdefault(count, []).append(key)

    def rotate(self) -> None:
        """Begin another period: the one before the present one is forgotten."""
        self._before = self._present()
        self._begin()

    def read(self) -> KeyCounts:
        """Return the counts of both periods together."""
        return added((self._before, self._present()))

    def _present(self) -> KeyCounts:
        errors = self._errors
        keys = [KeyCount(*key, count, errors.get(key, 0)) for key, count in self._counts.items()]
        return KeyCounts(keys, self._lowest)
