"""How a process is: whether its store answers, and what else there is to know of it without names."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Literal, TypeAlias

from msgspec import Struct

from ratelimit.clock import SECOND, Clock, seconds
from ratelimit.directory import Directory
from ratelimit.errors import (
    AccessDenied,
    StoreMisconfigured,
    StoreThrottled,
    StoreUnavailable,
    TableMismatch,
    TableNotFound,
)
from ratelimit.limiter import Limiter
from ratelimit.names import Key
from ratelimit.store import Store
from ratelimit.store.delegating import layers
from ratelimit.usage import UsageLog

logger = logging.getLogger("ratelimit")

StoreState: TypeAlias = Literal[
    "ok", "unavailable", "late", "misconfigured", "access_denied", "table_not_found", "table_mismatch"
]

KNOWN_FOR_US: Final = 1 * SECOND
DEADLINE_S: Final = 1.0
_KINDS: Final = {"MemoryStore": "memory", "DynamoDBStore": "dynamodb"}
# Nobody is called so, and reading it writes nothing.
_KEY: Final = Key.of("health", "health")
_STATES: Final[dict[type[StoreMisconfigured], StoreState]] = {
    TableNotFound: "table_not_found",
    TableMismatch: "table_mismatch",
    AccessDenied: "access_denied",
}


class Readiness:
    """Tell whether the store answers, asking it for real, and at most once a second however many want to know.

    `store` returns which one it is now. What exactly is wrong is in the log: it names tables and hosts.
    """

    def __init__(self, store: Callable[[], Store], clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._known: tuple[int, Store, StoreState] | None = None
        self._asking: asyncio.Task[StoreState] | None = None
        self._said = ""

    async def state(self) -> StoreState:
        """Return the state as of a second ago at most."""
        now, store = self._clock.now(), self._store()
        if self._known is not None and 0 <= now - self._known[0] < KNOWN_FOR_US and self._known[1] is store:
            return self._known[2]
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask(store, now))
        # Not awaited itself: who asks may go away, and the others want to know still.
        asking = self._asking
        await asyncio.wait([asking])
        return asking.result()

    async def _ask(self, store: Store, now: int) -> StoreState:
        try:
            state = await self._read(store)
        finally:
            self._asking = None
        self._known = now, store, state
        return state

    async def _read(self, store: Store) -> StoreState:
        try:
            async with asyncio.timeout(DEADLINE_S):
                await store.read(_KEY)
        except TimeoutError:
            return self._say("late", f"no answer within {DEADLINE_S:g} s")
        except StoreThrottled:  # It answers, and other records may do better.
            pass
        except StoreMisconfigured as error:
            return self._say(_STATES.get(type(error), "misconfigured"), str(error))
        except StoreUnavailable as error:
            return self._say("unavailable", str(error))
        self._said = ""
        return "ok"

    def _say(self, state: StoreState, why: str) -> StoreState:
        if self._said != state:
            logger.warning("not ready, the store cannot be used: %s", why)
            self._said = state
        return state


class UsageHealth(Struct, frozen=True):
    """The usage log."""

    kept: Literal["memory", "journal"]
    depth: int
    in_flight: int
    dropped: int
    journal_bytes: int

    @classmethod
    def of(cls, log: UsageLog) -> UsageHealth:
        stats = log.stats
        return cls(log.settings.kept_by, stats.depth, stats.in_flight, stats.dropped, stats.journal_bytes)


class DirectoryHealth(Struct, frozen=True):
    """The cache of users and plans."""

    failures: int
    stale: int

    @classmethod
    def of(cls, directory: Directory) -> DirectoryHealth:
        return cls(directory.stats.failures, directory.stats.stale)


class WorkerHealth(Struct, frozen=True):
    """How one process is, in words that name no user, no table and no host."""

    status: Literal["ok", "degraded", "leaving"]
    uptime: float
    """Seconds."""
    store: str
    """Its kind: `memory` or `dynamodb`, and of any other its class."""
    store_state: StoreState
    breaker: Literal["closed", "open", "half_open"]
    usage: UsageHealth | None
    directory: DirectoryHealth | None
    requests: int | None
    """Under way; None in an app, which counts its requests itself."""
    configuration: Literal["as read", "last good"] | None
    """`last good` where the last reload was refused; None in an app."""


async def health_of(
    limiter: Limiter,
    usage: UsageLog | None,
    readiness: Readiness,
    since: int,
    *,
    leaving: bool = False,
    requests: int | None = None,
    rejected: bool | None = None,
) -> WorkerHealth:
    """Return how a process is that counts by this limiter; `since` is when it started."""
    state, breaker, directory = await readiness.state(), limiter.breaker.state, limiter.directory
    well = state == "ok" and breaker == "closed"
    *_, innermost = layers(limiter.store)
    return WorkerHealth(
        status="leaving" if leaving else "ok" if well else "degraded",
        uptime=round(seconds(limiter.clock.now() - since), 1),
        store=_KINDS.get(kind := type(innermost).__name__, kind),
        store_state=state,
        breaker=breaker,
        usage=None if usage is None else UsageHealth.of(usage),
        directory=DirectoryHealth.of(directory) if isinstance(directory, Directory) else None,
        requests=requests,
        configuration=None if rejected is None else "last good" if rejected else "as read",
    )
