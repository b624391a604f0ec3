"""A middleware whose store has a bad day answers every request as the policy says, and the app hears nothing of it."""

from __future__ import annotations

import pytest
from starlette.types import Receive, Scope, Send

from ratelimit.dynamodb import DynamoDBStore
from ratelimit.http import RateLimitMiddleware
from ratelimit.limiter import Limiter
from ratelimit.policy import OnUnavailable, Policy
from ratelimit.testing import FakeClock
from tests.faults import Behaviour, FaultServer, garbage, half, hang_up, internal_error, slow, throttled
from tests.http.apps import client_of, hello

pytestmark = pytest.mark.heavy

EXPECTED: dict[OnUnavailable, list[int]] = {"allow": [200] * 4, "deny": [503] * 4, "local": [200, 200, 429, 429]}
BAD_DAYS = {
    "2 s an answer": slow(2),
    "500": internal_error(),
    "throttled": throttled(),
    "garbage": garbage(),
    "half an answer": half(),
    "hang up": hang_up(),
}


@pytest.mark.parametrize("on_unavailable", EXPECTED)
@pytest.mark.parametrize("bad_day", [*BAD_DAYS, "down"])
async def test_requests_on_a_bad_day(bad_day: str, on_unavailable: OnUnavailable) -> None:
    served = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal served
        served += 1
        await hello(scope, receive, send)

    async with FaultServer() as server:
        await make(server, BAD_DAYS.get(bad_day))
        store = DynamoDBStore(table="limits", region="eu-west-1", endpoint=server.endpoint)
        policy = Policy("hint", "2/day", match="/**", on_unavailable=on_unavailable)
        limiter = Limiter(store, [policy], clock=FakeClock(), deadline=0.3)
        async with client_of(RateLimitMiddleware(app, limiter=limiter)) as client:
            answers = [await client.get("/") for _ in range(4)]
        await limiter.close()
    assert [answer.status_code for answer in answers] == EXPECTED[on_unavailable]
    assert served == EXPECTED[on_unavailable].count(200)
    for answer in answers:
        assert ("retry-after" in answer.headers) == (answer.status_code != 200)


async def make(server: FaultServer, bad_day: Behaviour | None) -> None:
    """Answer like that from now on, or not at all."""
    if bad_day is None:
        await server.refuse()
    else:
        server.always(bad_day)
