"""What came of each request, on its way from a generator to the report."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

from ..plan import Outcome

Row: TypeAlias = list[Any]
"""A `Sample` as JSON and msgpack carry it."""


class Sample(NamedTuple):
    """One request. Times are whole microseconds."""

    series: int
    user: str
    at: int
    """Intended start, since measuring began; below 0 while warming up."""
    wait: int
    """Until one of the users was free to send it."""
    lag: int
    """Until it was on its way after that: the generator's own lateness."""
    latency: int
    """From the intended start to the answer."""
    service: int
    """From the sending to the answer; for a check, what the driver's own clock says of the check alone."""
    outcome: Outcome


class Batch(NamedTuple):
    """What a generator has to tell since the last time."""

    rows: list[Row]
    taken: int
    """Tickets taken so far."""
    left: int
    """Tickets that would be left if it ended now."""


class Tray:
    """Holds samples until they are fetched."""

    def __init__(self) -> None:
        self._rows: list[Row] = []

    def add(self, sample: Sample) -> None:
        """One more."""
        self._rows.append(list(sample))

    def empty(self) -> list[Row]:
        """All there are, which are gone from here then."""
        rows, self._rows = self._rows, []
        return rows
