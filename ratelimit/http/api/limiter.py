"""`LimiterRoutes`: the limiter's verbs."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Final

from ratelimit.decision import Decision
from ratelimit.errors import ConfigError, InvalidInput, RateLimitError
from ratelimit.event import encode_metadata
from ratelimit.http.api.bodies import (
    BatchAnswer,
    BatchBody,
    BatchResult,
    ChargeBody,
    CheckBody,
    DecisionAnswer,
    RefundBody,
    ResetBody,
    decision_of,
)
from ratelimit.http.api.operation import Operation, operation, problem_of_error
from ratelimit.http.charges import wants_event
from ratelimit.limiter import Limiter
from ratelimit.names import check_action, check_user
from ratelimit.quota import to_quotas
from ratelimit.usage import UsageLog

MAX_REFUNDED: Final = 10_000
"""Decisions remembered that something was given back of."""


class LimiterRoutes:
    """Each raises what the limiter raises."""

    def __init__(self, limiter: Limiter, usage: UsageLog | None) -> None:
        self._limiter = limiter
        self._usage = usage
        self._refunded: OrderedDict[str, Decision] = OrderedDict()

    def operations(self) -> list[Operation]:
        """All of them."""
        return [
            operation("POST", "/v1/check", self.check, problems=[404], repeatable=True),
            operation("POST", "/v1/check/batch", self.check_batch, repeatable=True),
            operation("POST", "/v1/peek", self.peek, problems=[404]),
            operation("POST", "/v1/charge", self.charge, problems=[404], repeatable=True),
            operation("POST", "/v1/refund", self.refund, problems=[404, 503], repeatable=True),
            operation("POST", "/v1/reset", self.reset, problems=[503], repeatable=True),
        ]

    async def check(self, body: CheckBody) -> DecisionAnswer:
        """Spend if it fits."""
        _check_input(body)
        return await self._checked(body)

    async def check_batch(self, body: BatchBody) -> BatchAnswer:
        """Check each by itself; a body of which any part is malformed is refused before anything is spent."""
        for number, asked in enumerate(body.checks):
            _check_input(asked, at=f"checks[{number}].")
        return BatchAnswer(list(await asyncio.gather(*map(self._result, body.checks))))

    async def peek(self, body: CheckBody) -> DecisionAnswer:
        """Look without spending."""
        _check_input(body)
        decision = await self._limiter.peek(
            body.user, body.action, cost=body.cost, quotas=body.quotas, algorithm=body.algorithm
        )
        return DecisionAnswer.of(decision)

    async def charge(self, body: ChargeBody) -> DecisionAnswer:
        """Spend what is owed afterwards, also beyond the quota."""
        _check_input(body)
        decision = await self._limiter.charge(
            body.user, body.action, body.cost, quotas=body.quotas, algorithm=body.algorithm
        )
        await self._record(body, decision)
        return DecisionAnswer.of(decision)

    async def refund(self, body: RefundBody) -> None:
        """Give back what was spent."""
        if body.decision is not None:
            _check_alone(body)
            await self._limiter.refund(self._decision(body.decision), cost=body.cost)
            return
        if body.user is None or body.action is None:
            missing = "user" if body.user is None else "action"
            raise ConfigError(missing, "is missing; say which decision is given back, or which user and action")
        await self._limiter.refund(
            body.user, body.action, body.cost or 1, at=body.at, quotas=body.quotas, algorithm=body.algorithm
        )

    def _decision(self, decision_id: str) -> Decision:
        """The same object for the same id: it knows what has been given back of it."""
        decision = self._refunded.get(decision_id)
        if decision is None:
            decision = self._refunded[decision_id] = decision_of(decision_id)
            if len(self._refunded) > MAX_REFUNDED:
                self._refunded.popitem(last=False)
        return decision

    async def reset(self, body: ResetBody) -> None:
        """Forget what was spent of an action's quotas; the totals stay."""
        await self._limiter.reset(body.user, body.action)

    async def _result(self, asked: CheckBody) -> BatchResult:
        try:
            return BatchResult(decision=await self._checked(asked))
        except RateLimitError as error:
            return BatchResult(problem=problem_of_error(error))

    async def _checked(self, body: CheckBody) -> DecisionAnswer:
        decision = await self._limiter.check(
            body.user, body.action, cost=body.cost, quotas=body.quotas, algorithm=body.algorithm
        )
        await self._record(body, decision)
        return DecisionAnswer.of(decision)

    async def _record(self, asked: CheckBody, decision: Decision) -> None:
        policy = self._limiter.policies.get(asked.action)
        # An action without a policy is always written.
        if self._usage is None or (policy is not None and not wants_event(policy, allowed=decision.allowed)):
            return
        waiting = self._usage.accept(
            asked.user,
            asked.action,
            at=decision.at_us // 1000,
            cost=asked.cost,
            allowed=decision.allowed,
            resource=asked.resource,
            metadata=asked.metadata,
        )
        if waiting is not None:
            await waiting


def _check_alone(body: RefundBody) -> None:
    for name in ("user", "action", "at", "quotas", "algorithm"):
        if getattr(body, name) is not None:
            raise ConfigError(name, "is not said beside a decision, which says it itself")


def _check_input(body: CheckBody, *, at: str = "") -> None:
    """Before anything is spent: what cannot be used, and where it stands."""
    name = "user"
    try:
        check_user(body.user)
        name = "action"
        check_action(body.action)
        if body.quotas is not None:
            name = "quotas"
            to_quotas(body.quotas)
        if body.metadata:
            name = "metadata"
            encode_metadata(body.metadata)
    except InvalidInput as error:
        raise ConfigError(f"{at}{name}", str(error)) from None
