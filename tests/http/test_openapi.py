"""FastAPI's OpenAPI says of a limited route that it may answer 429, with which fields and body."""

from __future__ import annotations

from typing import Any

import httpx
from fastapi import APIRouter, Depends, FastAPI

from ratelimit import describe_refusals
from ratelimit.http import RateLimitMiddleware, limited
from ratelimit.policy import Policy
from tests.http.apps import client_of, lifespan_of, limiter_of

HINT = Policy("hint", "1/day")


def app_of() -> FastAPI:
    app, router = FastAPI(), APIRouter(prefix="/api", dependencies=[Depends(limited("hint"))])
    own: dict[int | str, dict[str, Any]] = {429: {"description": "Slow down."}}

    @app.post("/hints/{number}", dependencies=[Depends(limited("hint"))])
    async def hints(number: int) -> str:
        return "hint"

    @app.get("/own", dependencies=[Depends(limited("hint", quotas="1/day"))], responses=own)
    async def said() -> str:
        return "own"

    @app.get("/free")
    async def free() -> str:
        return "free"

    @router.get("/included")
    async def included() -> str:
        return "included"

    app.include_router(router)
    app.add_middleware(RateLimitMiddleware, limiter=limiter_of(HINT))
    return app


async def test_a_limited_route_shows_its_refusal_as_it_is() -> None:
    app = app_of()
    async with lifespan_of(app), client_of(app) as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
        refusal = paths["/hints/{number}"]["post"]["responses"]["429"]
        assert refusal == paths["/api/included"]["get"]["responses"]["429"]
        assert paths["/own"]["get"]["responses"]["429"]["description"] == "Slow down."
        assert "429" not in paths["/free"]["get"]["responses"]
        answers = [await client.post("/hints/1") for _ in range(2)]
    check(refusal, answers[1])


def check(refusal: dict[str, Any], answer: httpx.Response) -> None:
    assert answer.status_code == 429
    assert {name.lower() for name in refusal["headers"]} <= set(answer.headers)
    ((kind, body),) = refusal["content"].items()
    assert kind == answer.headers["content-type"]
    assert set(body["schema"]["required"]) == set(body["schema"]["properties"]) == set(answer.json())


def test_the_document_can_be_written_without_a_server() -> None:
    app = app_of()
    assert "429" not in app.openapi()["paths"]["/api/included"]["get"]["responses"]
    for _ in range(2):
        describe_refusals(app)
        assert "429" in app.openapi()["paths"]["/api/included"]["get"]["responses"]
