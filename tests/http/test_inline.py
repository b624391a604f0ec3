"""What `limited(...)` says in the place of its policy: user, quotas, key: by functions and FastAPI's dependencies."""

from __future__ import annotations

import gc
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, Header
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from ratelimit.errors import ConfigError, InvalidQuota, InvalidUser, RateLimitError, UnknownAction
from ratelimit.http import MissingUser, RateLimitMiddleware, limited
from ratelimit.http.policy_check import MAX_REMEMBERED, PolicyCheck
from ratelimit.limiter import Limiter
from ratelimit.policy import Policy
from ratelimit.usage import UsageLog
from tests.http.apps import client_of, lifespan_of, limiter_of, used

HINT = Policy("hint", "9/day")
PLANS = {"free": "1/day", "pro": "3/day"}


def app_of(ask: Any, limiter: Limiter, **options: Any) -> Any:
    async def view(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str((await ask(request)).remaining))

    return RateLimitMiddleware(
        Starlette(routes=[Route("/", view, methods=["GET", "POST"])]), limiter=limiter, **options
    )


async def statuses(app: Any, *users: str, **headers: str) -> list[int]:
    async with client_of(app) as client:
        return [(await client.get("/", headers={"x-user": user, **headers})).status_code for user in users]


def user_of(request: Request) -> str | None:
    return request.headers.get("x-user") or None


async def plan_of(request: Request) -> str:
    return PLANS[request.headers.get("x-plan", "free")]


@pytest.mark.parametrize("named", [True, False])
async def test_quotas_by_a_function(named: bool) -> None:
    limiter = limiter_of(HINT if named else Policy("other", "9/day"))
    app = app_of(limited("hint", quotas=plan_of, user=user_of), limiter)
    assert await statuses(app, "alice", "alice", "bob") == [200, 429, 200]
    assert await statuses(app, *["alice"] * 3, **{"x-plan": "pro"}) == [200, 200, 429]
    assert (await limiter.peek("alice", "hint", quotas="3/day")).used == 3


async def test_fixed_quotas_need_no_policy_and_keep_what_the_policy_says_besides() -> None:
    app = app_of(limited("hint", quotas="1/day"), limiter_of(Policy("other", "9/day")))
    assert await statuses(app, "", "") == [200, 429]
    shadow = app_of(limited("hint", quotas="1/day"), limiter_of(Policy("hint", "9/day", mode="shadow", cost=1)))
    assert await statuses(shadow, "", "") == [200, 200]
    with pytest.raises(InvalidQuota):
        limited("hint", quotas="5/fortnight")


async def test_a_source_that_names_nobody_is_told_of_and_never_the_address(caplog: pytest.LogCaptureFixture) -> None:
    limiter = limiter_of(HINT)
    for source in ("header:x-api-key", "user", user_of, ["cookie:session", user_of]):
        async with client_of(app_of(limited("hint", user=source), limiter)) as client:  # type: ignore[arg-type]
            answer = await client.get("/")
            assert (answer.status_code, answer.text) == (401, "Who asks for 'hint' is not known.")
    assert "user=Depends(…)" in caplog.text
    assert await used(limiter) == 0
    asked = app_of(limited("hint", user=["header:x-api-key", "address"]), limiter, trusted_proxies=1)
    assert await statuses(asked, "", **{"x-forwarded-for": "198.51.100.1"}) == [200]
    assert await used(limiter, "ip:198.51.100.1") == 1
    with pytest.raises(ConfigError, match="unknown source 'heder:x'"):
        limited("hint", user="heder:x")


async def test_a_key_is_counted_in_the_place_of_the_user_whom_the_log_names() -> None:
    limiter = limiter_of(Policy("hint", "2/day", count="success"))
    usage = UsageLog(limiter.store, actions=limiter.policies, clock=limiter.clock)  # type: ignore[arg-type]
    app = app_of(limited("hint", user=user_of, key=lambda request: "org acme"), limiter, usage=usage)
    async with lifespan_of(app):
        assert await statuses(app, "alice", "bob", "carol") == [200, 200, 429]
        await usage.flush()
        assert (await used(limiter, "org acme"), await used(limiter, "alice")) == (2, 0)
        for user, allowed in (("alice", True), ("carol", False)):
            (event,) = (await usage.events(user)).events
            assert event.allowed is allowed
    everybody = app_of(limited("hint", key="everybody"), limiter_of(Policy("hint", "2/day")))
    assert await statuses(everybody, "alice", "bob", "carol") == [200, 200, 429]


async def test_policies_that_are_decided_together() -> None:
    limiter = limiter_of(
        Policy("hint", "9/day", together="org", user_from="address"), Policy("org", "9/day", user_from=user_of)
    )
    app = app_of(limited("hint", quotas="2/day", key="everybody", user=user_of), limiter)
    assert await statuses(app, "alice", "bob", "carol") == [200, 200, 429]
    assert (await used(limiter, "everybody"), await used(limiter, "alice", "org")) == (2, 1)


async def test_what_is_exempt_or_free_is_not_asked_who_it_is() -> None:
    limiter = limiter_of(Policy("hint", "9/day", exempt=lambda request: "x-internal" in request.headers))
    ask = limited("hint", user="header:x-api-key")
    assert await statuses(app_of(ask, limiter), "", **{"x-internal": "1"}) == [200]
    assert await statuses(app_of(ask, limiter, exempt="/**"), "") == [200]
    assert await statuses(app_of(limited("hint", user="header:x-api-key", cost=0), limiter), "") == [200]


def claims_of(authorization: Annotated[str, Header()] = "") -> dict[str, str] | None:
    name, _, plan = authorization.partition("/")
    return {"sub": name, "plan": plan} if name else None


def plan_in(claims: Annotated[dict[str, str], Depends(claims_of)]) -> str:
    return PLANS[claims["plan"]]


async def tokens_in(request: Request) -> int:
    return len((await request.json())["words"])


def fastapi_app(limiter: Limiter, *, inside: bool = True, **said: Any) -> FastAPI:
    app = FastAPI()
    if inside:
        app.add_middleware(RateLimitMiddleware, limiter=limiter)
    ask = limited("hint", **said) if inside else limited("hint", limiter=limiter, **said)

    @app.post("/hints", dependencies=[Depends(ask)])
    async def hints(words: dict[str, list[str]]) -> int:
        return len(words["words"])

    return app


@pytest.mark.parametrize("inside", [True, False])
async def test_dependencies_are_run_first_and_their_values_used(inside: bool) -> None:
    limiter = limiter_of(HINT)
    said: dict[str, Any] = {"quotas": Depends(plan_in), "user": Depends(claims_of), "cost": Depends(tokens_in)}
    app = fastapi_app(limiter, inside=inside, **said)
    async with client_of(app) as client:
        answers = []
        for token, words in (("alice/pro", 2), ("alice/pro", 1), ("bob/free", 1), ("bob/free", 0)):
            body = {"words": ["one"] * words}
            answers.append(await client.post("/hints", json=body, headers={"authorization": token}))
        assert [answer.json() for answer in answers] == [2, 1, 1, 0]
        if inside:
            refused = await client.post("/hints", json={"words": ["one"]}, headers={"authorization": "bob/free"})
            assert refused.status_code == 429
    assert (await used(limiter, "alice"), await used(limiter, "bob")) == (3, 1)


async def test_a_dependency_that_names_nobody_is_answered_and_spends_nothing() -> None:
    limiter = limiter_of(HINT)
    async with client_of(fastapi_app(limiter, user=Depends(claims_of))) as client:
        answer = await client.post("/hints", json={"words": []})
    assert (answer.status_code, answer.json()) == (401, {"detail": "Who asks for 'hint' is not known."})
    assert await used(limiter) == 0


async def test_a_dependency_is_for_fastapi_alone() -> None:
    with pytest.raises(RateLimitError, match=r"user is a Depends\(…\), which FastAPI calls"):
        await statuses(app_of(limited("hint", user=Depends(claims_of)), limiter_of(HINT)), "alice")


async def test_actions_that_calls_make_up_take_no_memory_and_stay_theirs() -> None:
    async def ask(request: Request) -> Any:
        quotas: Any = "1/day" if "x-plan" in request.headers else None
        return await limited(request.headers["x-user"], quotas=quotas, user="address")(request)

    def made() -> int:
        return sum(issubclass(type(one), PolicyCheck) for one in gc.get_objects())

    app, before = app_of(ask, limiter_of(HINT)), made()
    names = [f"action-{number}" for number in range(MAX_REMEMBERED + 100)]
    assert set(await statuses(app, *names, **{"x-plan": "free"})) == {200}
    assert await statuses(app, names[-1], **{"x-plan": "free"}) == [429]
    assert made() - before <= MAX_REMEMBERED
    with pytest.raises(UnknownAction):
        await statuses(app, names[-1])


async def test_functions_that_answer_nonsense_spend_nothing() -> None:
    limiter = limiter_of(HINT)
    cases: list[tuple[dict[str, Any], type[Exception]]] = [
        ({"quotas": lambda request: "5/fortnight"}, InvalidQuota),
        ({"quotas": lambda request: 7}, InvalidQuota),
        ({"user": lambda request: "a\0"}, InvalidUser),
        ({"key": lambda request: ""}, InvalidUser),
        ({"quotas": plan_of, "user": lambda request: 1 / 0}, ZeroDivisionError),
    ]
    for said, error in cases:
        with pytest.raises(error):
            await statuses(app_of(limited("hint", **said), limiter), "alice")
    with pytest.raises(UnknownAction):
        await statuses(app_of(limited("other", quotas=lambda request: None), limiter), "alice")
    assert await used(limiter) == 0
    assert issubclass(MissingUser, InvalidUser)
