"""What a store has asked of DynamoDB, for tests that count the calls and for metrics."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Stats:
    """Sums since the store was made."""

    calls: dict[str, int] = field(default_factory=dict)
    """Requests sent or tried, retries included, by operation (`UpdateItem`)."""
    write_units: float = 0.0
    """Only with `consumed=True`, and without refused writes, for which DynamoDB does not report any."""
    read_units: float = 0.0
    retries: int = 0
    throttles: int = 0
    fallbacks: dict[str, int] = field(default_factory=dict)
    """Checks that the fast lane left to aiobotocore, by reason (`proxy`, `denied`, ...); `clock` it settled itself."""
    connections: int = 0
    """Made by the fast lane."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Connections of the fast lane that ended, or never came about, by reason (`timeout`, `idle`, `unreachable`)."""

    def count_call(self, operation: str) -> None:
        """One more request."""
        self.calls[operation] = self.calls.get(operation, 0) + 1

    def fall_back(self, reason: str) -> None:
        """One more check that the fast lane did not take as it was."""
        self.fallbacks[reason] = self.fallbacks.get(reason, 0) + 1

    def drop(self, reason: str) -> None:
        """One more connection that ended."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
