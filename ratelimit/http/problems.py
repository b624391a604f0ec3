"""Problem bodies (RFC 9457): `application/problem+json`, in which every listener says what went wrong.

The types of a refusal are those of the RateLimit draft.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil
from typing import Final

import msgspec
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Scope

from ratelimit.decision import Decision
from ratelimit.http.body import no_body
from ratelimit.http.headers import HeaderWriter, item_name, tightest

CONTENT_TYPE: Final = b"application/problem+json"
QUOTA_EXCEEDED: Final = "https://iana.org/assignments/http-problem-types#quota-exceeded"
TEMPORARY_REDUCED_CAPACITY: Final = "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"

_encoder = msgspec.json.Encoder()


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """The members of a problem body, in the order they are written. A subclass adds members of its own."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str

    def encode(self) -> bytes:
        return _encoder.encode(self)

    def fields(self) -> list[tuple[bytes, bytes]]:
        """Return the fields that go with the body."""
        return [(b"content-type", CONTENT_TYPE), (b"content-length", b"%d" % len(self.encode()))]


class QuotaProblem(Problem, frozen=True, kw_only=True, rename="kebab"):
    """A refusal."""

    violated_policies: list[str] = []
    """Names as in the RateLimit fields."""


class ProblemError(Exception):
    """Raised where a request is answered with this problem."""

    def __init__(self, problem: Problem, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self.problem = problem
        self.headers = tuple(headers)
        super().__init__(problem.detail)


class ProblemResponse(Response):
    """A problem, with more fields. Made at once, where Starlette's own takes 10 µs: whoever floods us gets many."""

    def __init__(self, problem: Problem, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self.status_code = problem.status
        self.body = body = problem.encode()
        self.background = None
        self.raw_headers = [(b"content-type", CONTENT_TYPE), (b"content-length", b"%d" % len(body)), *headers]


def json_response(value: object) -> Response:
    """Return an answer that nobody keeps."""
    return Response(_encoder.encode(value), headers={"cache-control": "no-store"}, media_type="application/json")


async def answer_of(app: ASGIApp, scope: Scope, body: bytes | None = b"") -> Response:
    """Return what an app answers to a request with this body, whole; None is one that is elsewhere."""
    inbox: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    outbox: list[Message] = []

    async def receive() -> Message:
        return inbox.pop() if inbox else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        outbox.append(message)

    await app(scope, no_body if body is None else receive, send)
    start, *parts = outbox
    answer = Response(b"".join(part.get("body", b"") for part in parts), start["status"])
    answer.raw_headers = list(start["headers"])
    return answer


def problem_of(decision: Decision, writer: HeaderWriter) -> QuotaProblem:
    """Return what a refused decision is for the client."""
    if decision.reason == "unavailable":
        return _reduced_capacity(decision)
    if decision.reason == "inactive":
        detail = f"This user may not use {decision.policy!r} at present."
        return QuotaProblem(title="Forbidden", status=403, detail=detail)
    prepared = writer.prepared(decision)
    violated = [name for name, state in zip(prepared.names, decision.quotas, strict=True) if state.retry_after != 0.0]
    return QuotaProblem(
        type=QUOTA_EXCEEDED,
        title="The quota is used up" if decision.reason != "too_large" else "The request is larger than its quota",
        status=429,
        detail=_detail(decision, prepared.allowances),
        violated_policies=violated,
    )


def _reduced_capacity(decision: Decision) -> QuotaProblem:
    wait = max(1, ceil(decision.retry_after or 0.0))
    return QuotaProblem(
        type=TEMPORARY_REDUCED_CAPACITY,
        title="Quotas cannot be checked at the moment",
        status=503,
        detail=f"The quota of {decision.policy!r} cannot be checked at the moment. Try again in {_seconds(wait)}.",
        violated_policies=[item_name(decision.policy)],
    )


def _detail(decision: Decision, allowances: list[str]) -> str:
    if not decision.quotas:
        return f"The quota of {decision.policy!r} has no room."
    number = tightest(decision)
    per = allowances[number]
    if decision.retry_after is None:
        return f"A cost of {decision.cost} can never pass: {decision.policy!r} allows {per}."
    wait, left = _seconds(ceil(decision.retry_after)), decision.quotas[number].remaining
    return f"{decision.policy!r} allows {per}, and {left} {'is' if left == 1 else 'are'} left. Try again in {wait}."


def _seconds(number: int) -> str:
    return "1 second" if number == 1 else f"{number} seconds"
