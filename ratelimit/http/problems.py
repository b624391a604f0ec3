"""What a refusal says in its body: `application/problem+json` (RFC 9457), types from the RateLimit draft."""

from __future__ import annotations

from math import ceil
from typing import Final

import msgspec

from ratelimit.decision import Decision, QuotaState
from ratelimit.http.headers import item_name, item_names

CONTENT_TYPE: Final = b"application/problem+json"
QUOTA_EXCEEDED: Final = "https://iana.org/assignments/http-problem-types#quota-exceeded"
TEMPORARY_REDUCED_CAPACITY: Final = "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"

_encoder = msgspec.json.Encoder()


class Problem(msgspec.Struct, frozen=True, rename="kebab"):
    """The members of a problem body, in the order they are written."""

    type: str
    title: str
    status: int
    detail: str
    violated_policies: list[str]
    """Names as in the RateLimit fields."""

    def encode(self) -> bytes:
        """The body."""
        return _encoder.encode(self)


def problem_of(decision: Decision) -> Problem:
    """The problem that a refused decision is for the client."""
    if decision.reason == "unavailable":
        return _reduced_capacity(decision)
    if decision.reason == "inactive":
        return Problem("about:blank", "Forbidden", 403, f"This user may not use {decision.policy!r} at present.", [])
    names = item_names(decision.policy, [state.quota for state in decision.quotas])
    violated = [(name, state) for name, state in zip(names, decision.quotas, strict=True) if state.retry_after != 0.0]
    return Problem(
        type=QUOTA_EXCEEDED,
        title="The quota is used up" if decision.reason != "too_large" else "The request is larger than its quota",
        status=429,
        detail=_detail(decision),
        violated_policies=[name for name, _ in violated],
    )


def _reduced_capacity(decision: Decision) -> Problem:
    wait = max(1, ceil(decision.retry_after or 0.0))
    return Problem(
        type=TEMPORARY_REDUCED_CAPACITY,
        title="Quotas cannot be checked at the moment",
        status=503,
        detail=f"The quota of {decision.policy!r} cannot be checked at the moment. Try again in {_seconds(wait)}.",
        violated_policies=[item_name(decision.policy)],
    )


def _detail(decision: Decision) -> str:
    state = decision.tightest
    if state is None:
        return f"The quota of {decision.policy!r} has no room."
    per = f"{_amount(state)} per {state.quota.window}"
    if decision.retry_after is None:
        return f"A cost of {decision.cost} can never pass: {decision.policy!r} allows {per}."
    wait = _seconds(ceil(decision.retry_after))
    return f"{decision.policy!r} allows {per}, and {state.remaining} are left. Try again in {wait}."


def _amount(state: QuotaState) -> str:
    quota = state.quota
    return str(quota.limit) if quota.burst is None else f"{quota.limit} (at most {quota.burst} at once)"


def _seconds(number: int) -> str:
    return "1 second" if number == 1 else f"{number} seconds"
