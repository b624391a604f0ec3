"""`Recorder`: writes what a request was checked for into the usage log, once it is known how the request ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from random import random as _draw
from typing import Any, Final

from starlette.types import Scope

from ratelimit.errors import StoreUnavailable
from ratelimit.http.charges import Receipt
from ratelimit.http.routing import app_path
from ratelimit.policy import Policy
from ratelimit.usage import UsageLog

logger = logging.getLogger("ratelimit")


_REQUEST_ID: Final = b"x-request-id"
_SHADOW: Final = {"shadow_denied": True}


class Recorder:
    """Make an event of each receipt that its policy's `log` asks for."""

    __slots__ = ("_usage",)

    def __init__(self, usage: UsageLog) -> None:
        self._usage = usage

    async def record(self, scope: Scope, receipts: Sequence[Receipt], *, status: int, duration: float | None) -> None:
        """Keep an event for each receipt. The duration is in milliseconds; None of what does not end with an answer.

        Returns when they are kept as durably as the log promises.
        """
        waiting: list[Awaitable[bool]] = []
        for receipt in receipts:
            if not receipt.user or not wants_event(receipt.policy, allowed=receipt.decision.allowed):
                continue
            decision = receipt.decision
            pending = self._usage.accept(
                receipt.user,
                receipt.policy.name,
                at=decision.at_us // 1000,
                cost=decision.cost,
                allowed=decision.allowed,
                status=status,
                duration=duration,
                resource=app_path(scope),
                request_id=_request_id(scope),
                metadata=_SHADOW if decision.shadow_denied else None,
            )
            if pending is not None:
                waiting.append(pending)
        for pending in waiting:
            await pending


def wants_event(policy: Policy, *, allowed: bool) -> bool:
    """Return whether a policy's `log` asks for an event of such a decision; of refused ones it may want a sample."""
    if policy.log not in ("all", "allowed" if allowed else "denied"):
        return False
    return allowed or policy.log_sample == 1 or _draw() < policy.log_sample


def _request_id(scope: Any) -> str | None:
    for name, value in scope["headers"]:
        if name == _REQUEST_ID:
            text: str = value.decode("latin-1")
            return text if text.isprintable() else None
    return None


# `Refunds`: units on their way back to the store. The answer waits for them: whoever has it may ask again at once.

_DRAIN_S: Final = 5.0


class Refunds:
    """What cannot be given back within the limiter's deadline stays spent, usage reads too high, never too low; and is
    counted with the limiter's `background.lost`."""

    __slots__ = ("_tasks",)

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    async def give_back(self, receipts: Sequence[Receipt]) -> None:
        """Returns when all of them are back, or lost. It goes on where the one who waits is cancelled."""
        loop = asyncio.get_running_loop()
        tasks = {loop.create_task(give_back(receipt, receipt.spent)) for receipt in receipts}
        for task in tasks:
            self._tasks.add(task)
            task.add_done_callback(self._finished)
        await asyncio.wait(tasks)

    async def drain(self) -> None:
        """Wait for those under way, at most 5 s."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=_DRAIN_S)

    def __len__(self) -> int:
        return len(self._tasks)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a refund failed", exc_info=error)


async def give_back(receipt: Receipt, units: int) -> None:
    """Give so many units of it back, if the store will have them."""
    try:
        await receipt.give_back(units)
    except StoreUnavailable as error:
        name = receipt.policy.name
        receipt.limiter.background.lost["unreturned"] += units
        logger.warning("%d units of %r were not given back: %s", units, name, error)
