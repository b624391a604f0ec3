"""`Leaving`: how long a worker takes to leave."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaving:
    """`linger`: seconds in which clients are told to go by what they are answered. `grace`: seconds for what runs,
    `linger` included. After that come refunds and the usage log, by bounds of their own."""

    linger: float = 2.0
    grace: float = 15.0
