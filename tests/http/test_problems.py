"""Problem bodies: what a refused client reads."""

from __future__ import annotations

import json
from typing import Any

from ratelimit.decision import Decision
from ratelimit.http.headers import HeaderWriter
from ratelimit.http.problems import problem_of
from ratelimit.policy import Policy
from tests.http.apps import limiter_of


async def refused(quotas: str, *, cost: int = 1, name: str = "hint") -> dict[str, Any]:
    limiter = limiter_of(Policy(name, quotas))
    for _ in range(20):
        decision = await limiter.check("alice", name, cost=cost)
        if not decision.allowed:
            body: dict[str, Any] = json.loads(problem_of(decision, HeaderWriter()).encode())
            return body
    raise AssertionError("never refused")


async def test_a_used_up_quota() -> None:
    assert await refused("5/day") == {
        "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
        "title": "The quota is used up",
        "status": 429,
        "detail": "'hint' allows 5 per day, and 0 are left. Try again in 43200 seconds.",
        "violated-policies": ["hint"],
    }


async def test_only_the_violated_quotas_are_named() -> None:
    assert (await refused("2/minute; 100/day"))["violated-policies"] == ["hint-minute"]
    assert (await refused("2/minute; 2/day"))["violated-policies"] == ["hint-minute", "hint-day"]
    assert (await refused("1/day", name='50% "off" für alle'))["violated-policies"] == ['50%25 "off" f%C3%BCr alle']


async def test_a_cost_that_can_never_pass() -> None:
    body = await refused("5/day", cost=7)
    assert body["detail"] == "A cost of 7 can never pass: 'hint' allows 5 per day."
    assert (body["status"], body["title"]) == (429, "The request is larger than its quota")


def test_a_store_that_cannot_be_asked() -> None:
    problem = problem_of(Decision(False, "hint", 1, (), 0.7, "unavailable"), HeaderWriter())
    assert json.loads(problem.encode()) == {
        "type": "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity",
        "title": "Quotas cannot be checked at the moment",
        "status": 503,
        "detail": "The quota of 'hint' cannot be checked at the moment. Try again in 1 second.",
        "violated-policies": ["hint"],
    }


def test_a_user_who_is_not_active_is_forbidden() -> None:
    decision = Decision(allowed=False, policy="hint", cost=1, quotas=(), retry_after=None, reason="inactive")
    problem = problem_of(decision, HeaderWriter())
    assert (problem.status, problem.title, problem.violated_policies) == (403, "Forbidden", [])
