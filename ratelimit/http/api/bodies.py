"""What the API takes and gives, as types that check what comes in."""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeAlias

import msgspec
from msgspec import Meta, Struct

from ratelimit.decision import Decision, Reason
from ratelimit.policy import AlgorithmName
from ratelimit.quota import MAX_LIMIT

MOST_CHECKS: Final = 100
"""In one batch."""

# For the document only: what holds the text to it says better what is wrong (`ratelimit.names`, `ratelimit.quota`).
_PRINTABLE: Final = {"pattern": r"^[^\u0000-\u001f\u007f-\u009f\u2028\u2029]+$"}
_UNIT: Final = r"(s|sec|seconds?|m|min|minutes?|h|hr|hours?|d|days?|w|weeks?|mo|months?|y|yr|years?)"
_QUOTA: Final = rf"\s*\+?[0-9]{{1,12}}\s*(/|per\s)\s*[0-9]{{0,6}}\s*{_UNIT}\s*(\sburst\s+[0-9]{{1,12}}\s*)?"
_QUOTAS: Final = {
    "pattern": rf"^(\s*(unlimited|-1)\s*|{_QUOTA}([;,|]{_QUOTA})*)$",
    "examples": ["5/day", "100/hour; 1000/day", "10 per 5 minutes", "unlimited"],
}

UserName: TypeAlias = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=256,
        description="Without control characters; at most 256 bytes, of which `#` and `%` take three.",
        extra_json_schema=_PRINTABLE,
    ),
]
GivenUser: TypeAlias = UserName | Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
"""As callers may give it in a body: 12345 is the user "12345"."""
Name: TypeAlias = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=64,
        description="Without control characters; at most 64 bytes, of which `#` and `%` take three.",
        extra_json_schema=_PRINTABLE,
    ),
]
"""Of an action or a plan."""
Cost: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_LIMIT, description="Units; by default 1.")]
QuotasText: TypeAlias = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=1024,
        description="Several are one decision.",
        extra_json_schema=_QUOTAS,
    ),
]


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

    user: GivenUser
    action: Name
    cost: Cost = 1
    at: Annotated[int, Meta(ge=0, le=2**53, description="The decision's `at`; by default now.")] | None = None
    quotas: QuotasText | None = None
    algorithm: AlgorithmName | None = None


class ResetBody(Struct, frozen=True, forbid_unknown_fields=True):
    """Whose quotas start afresh."""

    user: GivenUser
    action: Name


class BatchBody(Struct, frozen=True, forbid_unknown_fields=True):
    """Checks that are decided one by one: some may pass, and others not."""

    checks: Annotated[list[CheckBody], Meta(min_length=1, max_length=MOST_CHECKS)]


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
    at: int
    """Microseconds since the epoch; for a refund."""
    quotas: list[QuotaAnswer]

    @classmethod
    def of(cls, decision: Decision) -> DecisionAnswer:
        """As JSON can say it."""
        quotas = [
            QuotaAnswer(str(s.quota), s.quota.limit, s.used, s.remaining, s.reset_after, s.retry_after)
            for s in decision.quotas
        ]
        return cls(
            decision.allowed, decision.policy, decision.cost, decision.limit, decision.used, decision.remaining,
            decision.reset_after, decision.retry_after, decision.reason, decision.shadow_denied, decision.at, quotas,
        )  # fmt: skip


class Flaw(Struct, frozen=True):
    """One thing that is wrong."""

    path: str
    """`checks[1].cost`; empty for the whole."""
    problem: str


class ApiProblem(Struct, frozen=True, kw_only=True):
    """RFC 9457, as `application/problem+json`."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[Flaw] = []


class BatchResult(Struct, frozen=True, omit_defaults=True):
    """One of the two."""

    decision: DecisionAnswer | None = None
    problem: ApiProblem | None = None


class BatchAnswer(Struct, frozen=True):
    """In the order of the checks."""

    results: list[BatchResult]


to_json: Final = msgspec.json.Encoder().encode
