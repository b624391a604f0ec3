"""`Lifespan`: opens the limiter before the app starts and closes it after the app has stopped, or opens it late.

Where no lifespan comes (a sub-app that is mounted, a server that runs none), the first request opens the limiter; those
that come meanwhile wait with it, at most `OPEN_WAIT_S`. Nobody will say then that the process ends, so that a usage log
which only has the memory is written before answers are complete. A store that cannot be reached does not keep the app
from starting: checks answer by `on_unavailable`, and opening is tried again behind a request now and then. A store that
will never answer until somebody changes something fails the start, with the reason.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ratelimit.clock import SECOND
from ratelimit.errors import ConfigError, StoreMisconfigured, StoreUnavailable
from ratelimit.http.dependency import unknown_action
from ratelimit.http.recording import Refunds
from ratelimit.limiter import Limiter
from ratelimit.usage import UsageLog

OPEN_WAIT_S: Final = 1.0
RETRY_AFTER: Final = 5 * SECOND
_LOOKED_AT: Final = "ratelimit.dependencies"
_NO_LIFESPAN: Final = (
    "no lifespan reaches the middleware (is its app mounted in another one?), so each answer waits until its usage "
    "event is written; open the usage log in the outer app's lifespan (`async with usage:`), or keep a journal"
)
_LAST: Final = frozenset({"lifespan.shutdown.complete", "lifespan.shutdown.failed", "lifespan.startup.failed"})

logger = logging.getLogger("ratelimit")


class Lifespan:
    """Whether the limiter is open, and who opens it next."""

    __slots__ = ("_limiter", "_refunds", "_retry_at", "_task", "_usage", "_wait_s", "_warned", "ready")

    def __init__(self, limiter: Limiter, refunds: Refunds, usage: UsageLog | None = None) -> None:
        self.ready = False
        """True once it is open: requests look no further."""
        self._limiter = limiter
        self._refunds = refunds
        self._usage = usage
        self._retry_at = 0
        self._wait_s = OPEN_WAIT_S
        self._warned = False
        self._task: asyncio.Task[None] | None = None

    async def run(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """The lifespan of the app, within that of the limiter. What the app raises passes, so that a server sees as
        ever whether it supports lifespans."""
        startup: list[Message] = [await receive()]
        open_still = True
        try:
            await self._open()
        except (StoreMisconfigured, ConfigError) as error:
            await send({"type": "lifespan.startup.failed", "message": f"ratelimit: {error}"})
            return

        async def replay() -> Message:
            return startup.pop() if startup else await receive()

        async def pass_on(message: Message) -> None:
            nonlocal open_still
            if message["type"] == "lifespan.startup.complete":
                message = self._started(scope, message)
            if message["type"] in _LAST:
                # Before the server hears of it: it may stop the event loop at once.
                open_still = False
                await self.close()
            await send(message)

        try:
            await app(scope, replay, pass_on)
        finally:
            if open_still:
                await self.close()

    def _started(self, scope: Scope, message: Message) -> Message:
        """The message, or that it failed after all: a route asks for an action that no policy is named for."""
        # Views ask the innermost middleware, which is here first.
        if scope.setdefault(_LOOKED_AT, self) is not self:
            return message
        problem = unknown_action(scope.get("app"), self._limiter.policies)
        return message if problem is None else {"type": "lifespan.startup.failed", "message": f"ratelimit: {problem}"}

    async def before_request(self) -> None:
        """Open, where nobody has; wait only for the first try. Never raises for a store."""
        if self._task is None or self._task.done():
            if self._limiter.clock.now() < self._retry_at:
                return
            self._task = asyncio.get_running_loop().create_task(self._open_late())
        if self._wait_s:
            finished, _ = await asyncio.wait({self._task}, timeout=self._wait_s)
            self._wait_s = 0.0
            for task in finished:
                task.result()

    async def close(self) -> None:
        """Let refunds under way arrive, then close the limiter. A later request would open it again."""
        await self._refunds.drain()
        self.ready = False
        self._retry_at = 0
        self._wait_s = OPEN_WAIT_S
        if self._usage is not None:
            await self._usage.close()
        await self._limiter.close()

    async def _open_late(self) -> None:
        # It is logged, and checks go by `on_unavailable` until somebody has changed something.
        with suppress(StoreMisconfigured):
            await self._open(attended=False)

    async def _open(self, *, attended: bool = True) -> None:
        self._retry_at = self._limiter.clock.now() + RETRY_AFTER
        if self._usage is not None:
            await self._usage.open(attended=attended)
            if not (self._usage.attended or self._usage.settings.durability == "journal" or self._warned):
                self._warned = True
                logger.warning(_NO_LIFESPAN)
        try:
            await self._limiter.open()
        except StoreMisconfigured as error:
            logger.error("the store is not usable: %s", error)
            raise
        except StoreUnavailable as error:
            logger.warning("the store cannot be reached, checks go by on_unavailable until it can: %s", error)
        else:
            self.ready = True
