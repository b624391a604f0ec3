"""ASGI lifespans: `LimiterLifespan` opens the limiter with the app and closes it after the app, or opens it late.

Where no lifespan comes (a sub-app that is mounted, a server that runs none), the first request opens the limiter; those
that come meanwhile wait with it, at most `OPEN_WAIT_S`. Nobody will say then that the process ends, so that a usage log
which only has the memory is written before answers are complete. Where a process stands still between requests (AWS
Lambda, which sets `AWS_LAMBDA_FUNCTION_NAME`), nothing at all is left to be done behind an answer.

A store that cannot be reached does not keep the app from starting: checks answer by `on_unavailable`, and opening is
tried again behind a request now and then. A store that will never answer until somebody changes something fails the
start, with the reason.
"""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import suppress
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ratelimit.clock import SECOND
from ratelimit.errors import ConfigError, StoreMisconfigured, StoreUnavailable, UnknownAction
from ratelimit.http.dependency import describe_refusals, unknown_action
from ratelimit.limiter import Limiter
from ratelimit.tasks import Tasks
from ratelimit.usage import UsageLog

OPEN_WAIT_S: Final = 1.0
DRAIN_TIMEOUT_S: Final = 5.0
RETRY_AFTER: Final = 5 * SECOND
_LOOKED_AT: Final = "ratelimit.dependencies"
_NO_LIFESPAN: Final = (
    "no lifespan reaches the middleware (its app is mounted in another one, or the server runs none), so each answer "
    "waits until its usage event is written; open the usage log in the outer app's lifespan (`async with usage:`), or "
    "keep a journal"
)
_ENDS: Final = frozenset({"lifespan.startup.failed", "lifespan.shutdown.complete", "lifespan.shutdown.failed"})
_COMPLETES: Final = frozenset({"http.response.body", "http.response.pathsend", "websocket.http.response.body"})

logger = logging.getLogger("ratelimit")


async def no_lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    """Be an app that has nothing to do when it begins and ends."""
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


class LimiterLifespan:
    """Whether the limiter is open, and who opens it next."""

    def __init__(self, limiter: Limiter, refunds: Tasks, usage: UsageLog | None = None) -> None:
        self.is_frozen = "AWS_LAMBDA_FUNCTION_NAME" in os.environ
        """Whether the process stands still between requests."""
        self.ready = False
        """True once it is open: requests look no further. Never where it is frozen."""
        self._is_open = False
        self._limiter = limiter
        self._refunds = refunds
        self._usage = usage
        self._retry_at = 0
        self._wait_s = OPEN_WAIT_S
        self._warned = False
        self._task: asyncio.Task[None] | None = None

    async def run(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the lifespan of the app within that of the limiter: open before it begins, close once after it has ended.

        What the app raises passes, so that a server sees as ever whether it supports lifespans. A start that fails is
        both told and raised, as Starlette's is: whoever only waits for the end of the lifespan (its `TestClient`) would
        otherwise wait for ever.
        """
        first: list[Message] = [await receive()]
        try:
            await self.open()
        except (StoreMisconfigured, ConfigError) as error:
            await send(_failed(str(error)))
            raise

        async def replay() -> Message:
            return first.pop() if first else await receive()

        if (problem := await self._run(app, scope, replay, send)) is not None:
            await send(_failed(problem))
            raise UnknownAction(problem)

    async def _run(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> str | None:
        """Return why the app may not start, when it has ended what it had begun; None where it has run to its end."""
        is_closed = False
        problem: str | None = None

        async def ask() -> Message:
            return await receive() if problem is None else {"type": "lifespan.shutdown"}

        async def close() -> None:
            nonlocal is_closed
            if not is_closed:
                is_closed = True
                await self.close()

        async def pass_on(message: Message) -> None:
            nonlocal problem
            if message["type"] == "lifespan.startup.complete":
                problem = self._problem_of(scope)
            if message["type"] in _ENDS:
                await close()  # before the server hears of it: it may stop the event loop at once
            if problem is None:
                await send(message)

        try:
            await app(scope, ask, pass_on)
        finally:
            await close()
        return problem

    def _problem_of(self, scope: Scope) -> str | None:
        # Views ask the innermost middleware, which is here first.
        if scope.setdefault(_LOOKED_AT, self) is not self:
            return None
        describe_refusals(scope.get("app"))
        return unknown_action(scope.get("app"), self._limiter.policies)

    async def before_request(self) -> None:
        """Open, where nobody has; wait only for the first try. Never raises for a store."""
        if self._is_open:
            return
        if self._task is None or self._task.done():
            if self._limiter.clock.now() < self._retry_at:
                return
            self._task = asyncio.get_running_loop().create_task(self._open_late())
        if self._wait_s:
            finished, _ = await asyncio.wait({self._task}, timeout=self._wait_s)
            self._wait_s = 0.0
            for task in finished:
                task.result()

    def settling(self, send: Send) -> Send:
        """Return a `send` that completes an answer when nothing is left to be done behind it."""

        async def settle_first(message: Message) -> None:
            if message["type"] in _COMPLETES and not message.get("more_body"):
                await self.settle()
            await send(message)

        return settle_first

    async def settle(self) -> None:
        """Return when what goes on behind answers has ended: refunds, uncounted checks, alerts, the usage log."""
        await self._refunds.drain(DRAIN_TIMEOUT_S)
        await self._limiter.drain()
        if self._usage is not None:
            await self._usage.settle()

    async def close(self) -> None:
        """Let refunds under way arrive, then close the limiter. A later request would open it again."""
        await self._refunds.drain(DRAIN_TIMEOUT_S)
        self.ready = self._is_open = False
        self._retry_at = 0
        self._wait_s = OPEN_WAIT_S
        if self._usage is not None:
            await self._usage.close()
        await self._limiter.close()

    async def _open_late(self) -> None:
        # It is logged, and checks go by `on_unavailable` until somebody has changed something.
        with suppress(StoreMisconfigured):
            await self.open(attended=False)

    async def open(self, *, attended: bool = True) -> None:
        """Open usage log and limiter. Raises `StoreMisconfigured`; a store out of reach is tried again later."""
        self._retry_at = self._limiter.clock.now() + RETRY_AFTER
        if self._usage is not None:
            await self._usage.open(attended=attended)
            is_kept = self._usage.settings.kept_by == "journal" or self.is_frozen
            if not (self._usage.attended or is_kept or self._warned):
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
            self._is_open = True
            self.ready = not self.is_frozen


def _failed(problem: str) -> Message:
    return {"type": "lifespan.startup.failed", "message": f"ratelimit: {problem}"}
