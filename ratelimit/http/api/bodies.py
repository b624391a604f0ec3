"""What the API takes and gives, as types that check what comes in."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import datetime
from secrets import token_bytes
from typing import Annotated, Any, Final, TypeAlias

import msgspec
from msgspec import Meta, Struct

from ratelimit.decision import Decision, QuotaState, Reason
from ratelimit.errors import ConfigError
from ratelimit.http.problems import Problem
from ratelimit.names import Key
from ratelimit.policy import AlgorithmName
from ratelimit.quota import MAX_LIMIT, Quota

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
    at: datetime
    quotas: list[QuotaAnswer]
    id: str
    """What a refund takes as its `decision`."""

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
            _Taken.id_of(decision),
        )  # fmt: skip


class _Taken(Struct, frozen=True, array_like=True):
    """What is needed to give a decision's units back: all that its `id` says, in no need of being kept anywhere."""

    user: str
    action: str
    spent: Annotated[int, Meta(ge=0, le=MAX_LIMIT)]
    at_us: Annotated[int, Meta(ge=0, le=2**53)]
    quotas: list[tuple[str, int]]
    nonce: bytes
    """Tells apart what is otherwise the same."""

    @classmethod
    def id_of(cls, decision: Decision) -> str:
        """What this process has counted by itself, it alone could give back: to the others, nothing was taken."""
        spent = 0 if decision.reason == "unavailable" else decision.spent
        quotas = [(str(state.quota), state.position) for state in decision.quotas] if spent else []
        taken = cls(decision.user, decision.policy, spent, decision.at_us, quotas, token_bytes(8))
        return urlsafe_b64encode(_pack(taken)).rstrip(b"=").decode()


def decision_of(text: str) -> Decision:
    """Return what a refund needs of the decision with this `id`. Raises `ConfigError`."""
    try:
        taken = _unpack(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        key = Key.of(taken.user, taken.action) if taken.spent else Key(taken.user, taken.action)
        states = [QuotaState(Quota.parse(quota), 0, 0, 0.0, 0.0, position) for quota, position in taken.quotas]
    except (ValueError, msgspec.DecodeError):  # of which an `InvalidInput` is one
        raise ConfigError("decision", "is not the id of a decision; pass it on as a check answered it") from None
    return Decision(True, key.action, taken.spent, tuple(states), 0.0, None, False, taken.at_us, key.user, taken.spent)


class FieldError(Struct, frozen=True):
    """One thing that is wrong."""

    path: str
    """`checks[1].cost`; empty for the whole."""
    problem: str


class ApiProblem(Problem, frozen=True, kw_only=True):
    """RFC 9457, as `application/problem+json`."""

    errors: list[FieldError] = msgspec.field(default_factory=list)


class BatchResult(Struct, frozen=True, omit_defaults=True):
    """One of the two."""

    decision: DecisionAnswer | None = None
    problem: ApiProblem | None = None


class BatchAnswer(Struct, frozen=True):
    """In the order of the checks."""

    results: list[BatchResult]


to_json: Final = msgspec.json.Encoder().encode
_pack: Final = msgspec.msgpack.Encoder().encode
_unpack: Final = msgspec.msgpack.Decoder(_Taken).decode
