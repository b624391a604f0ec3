"""`LimiterStats`: what the limiter spared the store."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class LimiterStats:
    """Checks since the limiter was made that took no write of their own."""

    denials_cached: int = 0
    """Refused by what the store had said a moment before."""
    leased: int = 0
    """Granted from units taken ahead."""
    coalesced: int = 0
    """Went out together with others."""
