"""`Verbs`: the limiter's verbs, from a JSON body to an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias, TypeVar

import msgspec

from ratelimit.decision import Decision
from ratelimit.errors import RateLimitError
from ratelimit.http.api.bodies import (
    BatchAnswer,
    BatchBody,
    BatchResult,
    ChargeBody,
    CheckBody,
    DecisionAnswer,
    RefundBody,
    ResetBody,
)
from ratelimit.http.api.problems import invalid, problem_of_error
from ratelimit.limiter import Limiter
from ratelimit.usage import UsageLog

T = TypeVar("T")
Verb: TypeAlias = Callable[[bytes], Awaitable[object]]

_check: Final = msgspec.json.Decoder(CheckBody)
_charge: Final = msgspec.json.Decoder(ChargeBody)
_refund: Final = msgspec.json.Decoder(RefundBody)
_reset: Final = msgspec.json.Decoder(ResetBody)
_batch: Final = msgspec.json.Decoder(BatchBody)


class Verbs:
    """Each takes a body as it came, and raises `Refused` for a bad one, and what the limiter raises."""

    def __init__(self, limiter: Limiter, usage: UsageLog | None) -> None:
        self._limiter = limiter
        self._usage = usage
        self.named: dict[str, Verb] = {
            "/v1/check": self.check,
            "/v1/check/batch": self.batch,
            "/v1/peek": self.peek,
            "/v1/charge": self.charge,
            "/v1/refund": self.refund,
            "/v1/reset": self.reset,
        }

    async def check(self, body: bytes) -> DecisionAnswer:
        """Spend if it fits."""
        return await self._checked(_read(_check, body))

    async def peek(self, body: bytes) -> DecisionAnswer:
        """Look without spending."""
        asked = _read(_check, body)
        decision = await self._limiter.peek(
            asked.user, asked.action, cost=asked.cost, quotas=asked.quotas, algorithm=asked.algorithm
        )
        return DecisionAnswer.of(decision)

    async def charge(self, body: bytes) -> DecisionAnswer:
        """Spend what is owed afterwards."""
        asked = _read(_charge, body)
        decision = await self._limiter.charge(
            asked.user, asked.action, asked.cost, quotas=asked.quotas, algorithm=asked.algorithm
        )
        await self._record(asked, decision)
        return DecisionAnswer.of(decision)

    async def refund(self, body: bytes) -> None:
        """Give back."""
        asked = _read(_refund, body)
        await self._limiter.refund(
            asked.user, asked.action, asked.cost, at=asked.at, quotas=asked.quotas, algorithm=asked.algorithm
        )

    async def reset(self, body: bytes) -> None:
        """Forget."""
        asked = _read(_reset, body)
        await self._limiter.reset(asked.user, asked.action)

    async def batch(self, body: bytes) -> BatchAnswer:
        """Check each by itself; a body of which any part is malformed is refused before anything is spent."""
        asked = _read(_batch, body)
        return BatchAnswer(list(await asyncio.gather(*map(self._result, asked.checks))))

    async def _result(self, asked: CheckBody) -> BatchResult:
        try:
            return BatchResult(decision=await self._checked(asked))
        except RateLimitError as error:
            return BatchResult(problem=problem_of_error(error))

    async def _checked(self, asked: CheckBody) -> DecisionAnswer:
        decision = await self._limiter.check(
            asked.user, asked.action, cost=asked.cost, quotas=asked.quotas, algorithm=asked.algorithm
        )
        await self._record(asked, decision)
        return DecisionAnswer.of(decision)

    async def _record(self, asked: CheckBody, decision: Decision) -> None:
        policy = self._limiter.policies.get(asked.action)
        log = "all" if policy is None else policy.log
        if self._usage is None or log not in ("all", "allowed" if decision.allowed else "denied"):
            return
        waiting = self._usage.accept(
            asked.user,
            asked.action,
            at=decision.at // 1000,
            cost=asked.cost,
            allowed=decision.allowed,
            resource=asked.resource,
            metadata=asked.metadata,
        )
        if waiting is not None:
            await waiting


def _read(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    try:
        return decoder.decode(body)
    except msgspec.DecodeError as error:
        raise invalid(error) from None
