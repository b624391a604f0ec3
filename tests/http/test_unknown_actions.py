"""A dependency on an action that no policy is named for is found when the app starts."""

from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, WebSocket
from starlette.types import ASGIApp, Message

from ratelimit import Policy, RateLimitMiddleware, UnknownAction, limited
from tests.http.apps import lifespan_of, limiter_of


def app_with_a_typo(where: str) -> FastAPI:
    wrong, right = Depends(limited("hnit")), Depends(limited("hint"))

    def here(name: str) -> list[Any]:
        return [wrong if where == name else right]

    async def view(decision: Annotated[object, here("parameter")[0]]) -> None: ...

    async def feed(websocket: WebSocket) -> None: ...

    app, router = FastAPI(dependencies=here("app")), APIRouter(dependencies=here("router"))
    app.add_api_route("/a", view, dependencies=here("route"))
    router.add_api_route("/b", view)
    app.include_router(router, prefix="/in", dependencies=here("included"))
    app.add_api_websocket_route("/c", feed, dependencies=here("websocket"))
    return app


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("where", ["route", "parameter", "router", "included", "websocket", "app"])
async def test_an_action_that_nobody_knows_fails_the_start(where: str, inside: bool) -> None:
    inner, limiter = app_with_a_typo(where), limiter_of()
    if inside:
        inner.add_middleware(RateLimitMiddleware, limiter=limiter)
    app: ASGIApp = inner if inside else RateLimitMiddleware(inner, limiter=limiter)
    sent: list[Message] = []
    with pytest.raises(UnknownAction, match=r"limited\('hnit'\).*; did you mean 'hint'\?"):
        async with lifespan_of(app) as sent:
            pass
    assert [message["type"] for message in sent] == ["lifespan.startup.failed"]
    assert "limited('hnit')" in sent[0]["message"]


async def test_the_innermost_middleware_is_asked_and_what_is_mounted_asks_its_own() -> None:
    elsewhere = limited("else", limiter=limiter_of(Policy("else", "1/day")))
    mounted, app = FastAPI(), FastAPI(dependencies=[Depends(limited("hint"))])
    mounted.add_api_route("/x", lambda: None, dependencies=[Depends(limited("its-own"))])
    app.add_api_route("/a", lambda: None, dependencies=[Depends(elsewhere)])
    app.mount("/sub", mounted)
    app.add_middleware(RateLimitMiddleware, limiter=limiter_of())
    async with lifespan_of(RateLimitMiddleware(app, limiter=limiter_of(Policy("run", "1/day")))) as sent:
        assert [message["type"] for message in sent] == ["lifespan.startup.complete"]
