"""`Recorder`: writes what a request was checked for into the usage log, once it is known how the request ended."""

from __future__ import annotations

import random as _random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from starlette.types import Scope

from ratelimit.http.gate import Receipt
from ratelimit.http.target import app_path
from ratelimit.usage import UsageLog

_REQUEST_ID: Final = b"x-request-id"
_SHADOW: Final = {"shadow_denied": True}


class Recorder:
    """Makes an event of each receipt that its policy's `log` asks for. `random` draws the sample of refused ones."""

    __slots__ = ("_random", "_usage")

    def __init__(self, usage: UsageLog, *, random: Callable[[], float] = _random.random) -> None:
        self._usage = usage
        self._random = random

    async def record(self, scope: Scope, receipts: Sequence[Receipt], *, status: int, duration: float | None) -> None:
        """Keep an event for each receipt. The duration is in milliseconds; None of what does not end with an answer.

        Returns when they are kept as durably as the log promises.
        """
        waiting: list[Awaitable[bool]] = []
        for receipt in receipts:
            if not self._wants(receipt):
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

    def _wants(self, receipt: Receipt) -> bool:
        policy, allowed = receipt.policy, receipt.decision.allowed
        if not receipt.user or policy.log == "none":
            return False
        if allowed:
            return policy.log != "denied"
        return policy.log != "allowed" and (policy.log_sample == 1 or self._random() < policy.log_sample)


def _request_id(scope: Any) -> str | None:
    for name, value in scope["headers"]:
        if name == _REQUEST_ID:
            text: str = value.decode("latin-1")
            return text if text.isprintable() else None
    return None
