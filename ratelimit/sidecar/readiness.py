"""`Readiness`: whether the store answers, asked of it for real, and at most once a second however many want to know."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Literal, TypeAlias

from ratelimit.clock import SECOND, Clock
from ratelimit.errors import (
    AccessDenied,
    StoreMisconfigured,
    StoreThrottled,
    StoreUnavailable,
    TableMismatch,
    TableNotFound,
)
from ratelimit.names import Key
from ratelimit.store import TableStore

StoreState: TypeAlias = Literal[
    "ok", "unavailable", "late", "misconfigured", "access_denied", "table_not_found", "table_mismatch"
]

KNOWN_FOR: Final = 1 * SECOND
DEADLINE_S: Final = 1.0
# Nobody is called so, and reading it writes nothing.
_KEY: Final = Key.of("health", "health")
_STATES: Final[dict[type[StoreMisconfigured], StoreState]] = {
    TableNotFound: "table_not_found",
    TableMismatch: "table_mismatch",
    AccessDenied: "access_denied",
}

logger = logging.getLogger("ratelimit")


class Readiness:
    """`store` is asked each time which one it is. What exactly is wrong is in the log: it names tables and hosts."""

    def __init__(self, store: Callable[[], TableStore], clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._known: tuple[int, TableStore, StoreState] | None = None
        self._asking: asyncio.Task[StoreState] | None = None
        self._said = ""

    async def state(self) -> StoreState:
        """As of a second ago at most."""
        now, store = self._clock.now(), self._store()
        if self._known is not None and 0 <= now - self._known[0] < KNOWN_FOR and self._known[1] is store:
            return self._known[2]
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask(store, now))
        # Not awaited itself: who asks may go away, and the others want to know still.
        asking = self._asking
        await asyncio.wait([asking])
        return asking.result()

    async def _ask(self, store: TableStore, now: int) -> StoreState:
        try:
            state = await self._read(store)
        finally:
            self._asking = None
        self._known = now, store, state
        return state

    async def _read(self, store: TableStore) -> StoreState:
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
        """Once, until it changes."""
        if self._said != state:
            logger.warning("not ready, the store cannot be used: %s", why)
            self._said = state
        return state
