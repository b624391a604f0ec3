"""The limiter's verbs: check, peek, charge, refund, reset, and a batch of checks."""

from __future__ import annotations

import asyncio
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from random import getrandbits
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from ratelimit.blocking import aside
from ratelimit.cache import LRUCache
from ratelimit.config.settings import policy_document
from ratelimit.decision import Decision, QuotaState, Reason
from ratelimit.errors import ConfigError, InvalidInput, RateLimitError
from ratelimit.event import encode_metadata
from ratelimit.http.api.operation import ApiProblem, Cost, GivenUser, Name, Operation, QuotasText, problem_of_error
from ratelimit.http.charges import wants_event
from ratelimit.limiter import Limiter, Spend
from ratelimit.names import Key, check_action, check_user
from ratelimit.policy import AlgorithmName
from ratelimit.quota import MAX_LIMIT, Quota, to_quotas
from ratelimit.usage import UsageLog

MAX_CHECKS: Final = 100
"""In one batch."""
MAX_REFUNDED: Final = 10_000
"""Decisions remembered that something was given back of."""


class CheckBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """May this user do this action?"""

    user: GivenUser
    action: Name
    cost: Cost = 1
    quotas: QuotasText | None = None
    """In the place of those of the policy or plan."""
    algorithm: AlgorithmName | None = None
    resource: Annotated[str, Meta(max_length=200)] | None = None
    """For the usage log: what it is done to."""
    metadata: dict[str, Any] | None = None
    """For the usage log: whatever else is worth keeping."""


class ChargeBody(CheckBody, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is owed afterwards."""

    cost: Cost


class RefundBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Units to give back."""

    decision: (
        Annotated[str, Meta(min_length=1, max_length=8192, description="The `id` of what is given back.")] | None
    ) = None
    """What a check or a charge took is given back once, and nothing where it took nothing. All else but `cost` is left
    out then."""
    user: GivenUser | None = None
    """With `action`, where there is no decision: no more is given back than is left at that moment, whoever took it."""
    action: Name | None = None
    cost: Cost | None = None
    """By default all that the decision took; without a decision, 1."""
    at: Annotated[datetime, Meta(tz=True, description="By default now.")] | None = None
    quotas: QuotasText | None = None
    algorithm: AlgorithmName | None = None


class ResetBody(Struct, frozen=True, forbid_unknown_fields=True):
    """Whose quotas start afresh."""

    user: GivenUser
    action: Name


class BatchBody(Struct, frozen=True, forbid_unknown_fields=True):
    """Checks that are decided one by one: some may pass, and others not."""

    checks: Annotated[list[CheckBody], Meta(min_length=1, max_length=MAX_CHECKS)]
    together: bool = False
    """Whether all of them spend, or none: each is of another user or action then."""


class QuotaAnswer(Struct, frozen=True):
    """How one quota stands after the decision."""

    quota: str
    limit: int
    used: int
    remaining: int
    reset_after: float
    retry_after: float | None


class DecisionAnswer(Struct, frozen=True):
    """The answer to a check; limit, used, remaining and reset_after are those of the tightest quota."""

    allowed: bool
    policy: str
    cost: int
    limit: int | None
    used: int
    remaining: int | None
    reset_after: float
    """Seconds."""
    retry_after: float | None
    """Seconds; 0 when allowed, null where it can never pass."""
    reason: Reason | None
    shadow_denied: bool
    at: datetime
    quotas: list[QuotaAnswer]
    id: str
    """What a refund takes as its `decision`."""

    @classmethod
    def of(cls, decision: Decision) -> DecisionAnswer:
        texts = [str(state.quota) for state in decision.quotas]
        quotas = [
            QuotaAnswer(text, s.quota.limit, s.used, s.remaining, s.reset_after, s.retry_after)
            for text, s in zip(texts, decision.quotas, strict=True)
        ]
        tightest = decision.tightest
        limit, used, remaining, reset_after = (
            (None, 0, None, 0.0)
            if tightest is None
            else (tightest.quota.limit, tightest.used, tightest.remaining, tightest.reset_after)
        )
        return cls(
            decision.allowed, decision.policy, decision.cost, limit, used, remaining, reset_after,
            decision.retry_after, decision.reason, decision.shadow_denied, decision.at, quotas,
            _Taken.id_of(decision, texts),
        )  # fmt: skip


class _Taken(Struct, frozen=True, array_like=True):
    """What is needed to give a decision's units back: all that its `id` says, in no need of being kept anywhere."""

    user: str
    action: str
    spent: Annotated[int, Meta(ge=0, le=MAX_LIMIT)]
    at_us: Annotated[int, Meta(ge=0, le=2**53)]
    quotas: list[tuple[str, int]]
    nonce: int
    """Tells apart what is otherwise the same."""

    @classmethod
    def id_of(cls, decision: Decision, texts: list[str]) -> str:
        """Write what a refund needs: nothing where this process counted by itself, as it alone could give that back.

        `texts` are those of the quotas.
        """
        spent = 0 if decision.reason == "unavailable" else decision.spent
        quotas = [(text, s.position) for text, s in zip(texts, decision.quotas, strict=True)] if spent else []
        return cls(decision.user, decision.policy, spent, decision.at_us, quotas, getrandbits(64)).text()

    def text(self) -> str:
        """Return the one spelling of it."""
        return urlsafe_b64encode(_pack(self)).rstrip(b"=").decode()


def decision_of(text: str) -> Decision:
    """Return what a refund needs of the decision with this `id`. Raises `ConfigError`."""
    try:
        taken = _unpack(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        if taken.text() != text:  # it is known by its text that something was given back
            raise ValueError("another spelling of it")
        key = Key.of(taken.user, taken.action) if taken.spent else Key(taken.user, taken.action)
        states = [QuotaState(Quota.parse(quota), 0, 0, 0.0, 0.0, position) for quota, position in taken.quotas]
    except (ValueError, msgspec.DecodeError):  # of which an `InvalidInput` is one
        raise ConfigError("decision", "is not the id of a decision; pass it on as a check answered it") from None
    return Decision(True, key.action, taken.spent, tuple(states), 0.0, None, False, taken.at_us, key.user, taken.spent)


class BatchResult(Struct, frozen=True, omit_defaults=True):
    """One of the two."""

    decision: DecisionAnswer | None = None
    problem: ApiProblem | None = None


class BatchAnswer(Struct, frozen=True):
    """In the order of the checks."""

    results: list[BatchResult]
    allowed: bool
    """Whether all of them were. If not, those that were decided `together` have spent nothing."""


_pack: Final = msgspec.msgpack.Encoder().encode
_unpack: Final = msgspec.msgpack.Decoder(_Taken).decode


class PoliciesAnswer(Struct, frozen=True):
    """The policies, in their order, each with its settings as the configuration shows them."""

    policies: dict[str, dict[str, Any]]


class LimiterRoutes:
    """Each raises what the limiter raises."""

    def __init__(self, limiter: Limiter, usage: UsageLog | None) -> None:
        self._limiter = limiter
        self._usage = usage
        self._refunded: LRUCache[str, Decision] = LRUCache(MAX_REFUNDED)
        self._policies: Any = None
        """Those of the limiter, which never change, as they are answered; None until somebody asks."""

    def operations(self) -> list[Operation]:
        return [
            Operation("GET", "/v1/policies", self.policies),
            Operation("POST", "/v1/check", self.check, problems=[404], repeatable=True),
            Operation("POST", "/v1/check/batch", self.check_batch, problems=[404], repeatable=True),
            Operation("POST", "/v1/peek", self.peek, problems=[404]),
            Operation("POST", "/v1/charge", self.charge, problems=[404], repeatable=True),
            Operation("POST", "/v1/refund", self.refund, problems=[404, 503], repeatable=True),
            Operation("POST", "/v1/reset", self.reset, problems=[503], repeatable=True),
        ]

    async def policies(self) -> PoliciesAnswer:
        """List the policies that checks are made by."""
        if self._policies is None:  # aside: of ten thousand they are 2.6 MB
            self._policies = await aside(self._encode_policies)
        return PoliciesAnswer(self._policies)

    def _encode_policies(self) -> Any:
        document = {name: policy_document(policy) for name, policy in self._limiter.policies.items()}
        return msgspec.Raw(msgspec.json.encode(document))

    async def check(self, body: CheckBody) -> DecisionAnswer:
        """Spend if it fits."""
        _check_input(body)
        return await self._checked(body)

    async def check_batch(self, body: BatchBody) -> BatchAnswer:
        """Check each by itself, or all together; a body of which any part is malformed is refused before anything is
        spent."""
        for number, asked in enumerate(body.checks):
            _check_input(asked, at=f"checks[{number}].")
        if body.together:
            results = await self._together(body.checks)
        else:
            results = list(await asyncio.gather(*map(self._result, body.checks)))
        return BatchAnswer(results, all(one.decision is not None and one.decision.allowed for one in results))

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
            for name in ("user", "action", "at", "quotas", "algorithm"):
                if getattr(body, name) is not None:
                    raise ConfigError(name, "is not said beside a decision, which says it itself")
            # The same object for the same id: it knows what has been given back of it.
            decision = self._refunded.get_or_make(body.decision, partial(decision_of, body.decision))
            await self._limiter.refund(decision, cost=body.cost)
            return
        if body.user is None or body.action is None:
            missing = "user" if body.user is None else "action"
            raise ConfigError(missing, "is missing; say which decision is given back, or which user and action")
        await self._limiter.refund(
            body.user, body.action, body.cost or 1, at=body.at, quotas=body.quotas, algorithm=body.algorithm
        )

    async def reset(self, body: ResetBody) -> None:
        """Forget what was spent of an action's quotas; the totals stay."""
        await self._limiter.reset(body.user, body.action)

    async def _together(self, checks: Sequence[CheckBody]) -> list[BatchResult]:
        answer = await self._limiter.check_all(
            [Spend(one.user, one.action, one.cost, one.quotas, one.algorithm) for one in checks]
        )
        for asked, decision in zip(checks, answer, strict=True):
            untaken = not answer and decision.allowed
            await self._record(msgspec.structs.replace(asked, cost=0) if untaken else asked, decision)
        return [BatchResult(decision=DecisionAnswer.of(decision)) for decision in answer]

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
        waiting = self._usage._accept(
            decision.user,
            asked.action,
            at_us=decision.at_us,
            cost=asked.cost,
            allowed=decision.allowed,
            resource=asked.resource,
            metadata=asked.metadata,
        )
        if waiting is not None:
            await waiting


def _check_input(body: CheckBody, *, at: str = "") -> None:
    """Raise `ConfigError` for what cannot be used, with where it stands, before anything is spent."""
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
