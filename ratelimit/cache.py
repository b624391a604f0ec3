"""`LRUCache`: a dict that holds so many entries at most, and lets the least recently used ones go."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LRUCache(Generic[K, V]):
    """At most `max_entries`. Getting or putting an entry uses it, and so it outlives those that are used less."""

    __slots__ = ("_entries", "max_entries")

    def __init__(self, max_entries: int) -> None:
        self.max_entries = max_entries
        self._entries: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        """Use the value of this key; None where there is none."""
        value = self._entries.get(key)
        if value is not None:
            self._entries.move_to_end(key)
        return value

    def peek(self, key: K) -> V | None:
        """Return the value of this key without using it."""
        return self._entries.get(key)

    def get_or_make(self, key: K, make: Callable[[], V]) -> V:
        """Use the value of this key; what `make` returns is put there where there is none."""
        value = self._entries.get(key)
        if value is None:
            value = make()
            self.put(key, value)
        else:
            self._entries.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> tuple[K, V] | None:
        """Set the value of this key. Return the entry that had to go for it, if any did."""
        entries = self._entries
        entries[key] = value
        entries.move_to_end(key)
        return entries.popitem(last=False) if len(entries) > self.max_entries else None

    def pop(self, key: K) -> V | None:
        """Remove the value of this key and return it; None where there is none."""
        return self._entries.pop(key, None)

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[K]:
        """Iterate over the keys, the least recently used one first."""
        return iter(self._entries)
