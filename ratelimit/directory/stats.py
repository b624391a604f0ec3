"""`DirectoryStats`: how the cache does. Each bound that may be hit has a counter that shows it was."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class DirectoryStats:
    """Sums since the directory was made."""

    hits: int = 0
    """Answered from the cache."""
    reads: int = 0
    """Asked of the store: users, plans and identities."""
    shared: int = 0
    """Joined a read that was under way."""
    failures: int = 0
    """Reads without a usable answer."""
    spared: int = 0
    """Not even tried, because the store had failed repeatedly."""
    late: int = 0
    """Gave up waiting for a read."""
    stale: int = 0
    """Answered by what was known before, because there was nothing newer to be had."""
    without: int = 0
    """Times that a policy's own quotas had to do, because nothing was known."""
    unknown_plans: int = 0
    """Times that a policy's own quotas held, because the user's plan does not exist."""
    evicted: int = 0
    """Gave way to others before their time was up: `max_users` is small for this traffic."""
