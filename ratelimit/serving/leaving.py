"""`Leaving`: how long a worker takes to leave."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaving:
    """`linger`: seconds in which clients are told to go by what they are answered. `grace`: seconds for what runs,
    `linger` included. After that come refunds and the usage log, by bounds of their own."""

    linger: float = 2.0
    grace: float = 15.0

    @property
    def accepts(self) -> float:
        """Seconds in which newcomers are let in: load balancers take a while to hear that a service leaves."""
        return min(self.linger, self.grace / 2)
