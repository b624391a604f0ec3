"""`WorkerHealth`: how one worker is, in words that name no user, no table and no host."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from ratelimit.sidecar.base import Base
from ratelimit.sidecar.readiness import StoreState


class UsageHealth(Struct, frozen=True):
    """The usage log."""

    kept: Literal["memory", "journal"]
    depth: int
    in_flight: int
    dropped: int
    journal_bytes: int


class DirectoryHealth(Struct, frozen=True):
    """The cache of users and plans."""

    failures: int
    stale: int


class WorkerHealth(Struct, frozen=True):
    """All of it."""

    status: Literal["ok", "degraded", "leaving"]
    uptime: float
    """Seconds."""
    store: str
    """Its kind: `memory` or `dynamodb`."""
    store_state: StoreState
    breaker: Literal["closed", "open", "half_open"]
    usage: UsageHealth | None
    directory: DirectoryHealth | None
    requests: int
    """Under way."""
    configuration: Literal["as read", "last good"]
    """`last good` where the last reload was refused."""

    @classmethod
    def of(
        cls, base: Base, *, kind: str, state: StoreState, leaving: bool, uptime: float, requests: int, rejected: bool
    ) -> WorkerHealth:
        """Of what holds now."""
        breaker = base.limiter.breaker.state
        well = state == "ok" and breaker == "closed"
        return cls(
            status="leaving" if leaving else "ok" if well else "degraded",
            uptime=round(uptime, 1),
            store=kind,
            store_state=state,
            breaker=breaker,
            usage=_usage(base),
            directory=_directory(base),
            requests=requests,
            configuration="last good" if rejected else "as read",
        )


class Silent(Struct, frozen=True):
    """One that is there and does not answer."""

    status: Literal["silent"] = "silent"


def _usage(base: Base) -> UsageHealth | None:
    if base.usage is None:
        return None
    stats = base.usage.stats
    return UsageHealth(base.usage.settings.durability, stats.depth, stats.in_flight, stats.dropped, stats.journal_bytes)


def _directory(base: Base) -> DirectoryHealth | None:
    if base.directory is None:
        return None
    return DirectoryHealth(base.directory.stats.failures, base.directory.stats.stale)
