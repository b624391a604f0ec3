"""`Bursts`: how often the earlier layout may have lost an event, as it kept one a second for a user and action."""

from __future__ import annotations

import msgspec


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
