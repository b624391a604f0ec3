"""`Depends(limited(...))` of FastAPI's views that are not async: those run in a thread, the check on the event loop."""

import threading
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from anyio import from_thread
from fastapi import APIRouter, Depends, FastAPI, Request
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from ratelimit import ConfigError, Decision, Policy, QuotaExceeded, RateLimitMiddleware, limited, quota_exceeded_handler
from ratelimit.sync import Limiter as BlockingLimiter
from tests.http.apps import client_of, limiter_of, used

HINT = Policy("hint", "2/day")


def view() -> str:
    assert threading.current_thread() is not threading.main_thread()
    return "hello"


def of_the_route(check: Any) -> FastAPI:
    app = FastAPI()
    app.get("/", dependencies=[Depends(check)])(view)
    return app


def of_the_app(check: Any) -> FastAPI:
    app = FastAPI(dependencies=[Depends(check)])
    app.get("/")(view)
    return app


def of_a_router(check: Any) -> FastAPI:
    router = APIRouter(dependencies=[Depends(check)])
    router.get("/")(view)
    app = FastAPI()
    app.include_router(router)
    return app


def of_an_included_router(check: Any) -> FastAPI:
    router = APIRouter()
    router.get("/")(view)
    app = FastAPI()
    app.include_router(router, dependencies=[Depends(check)])
    return app


def as_a_parameter(check: Any) -> FastAPI:
    app = FastAPI()

    @app.get("/")
    def told(decision: Annotated[Decision, Depends(check)]) -> str:
        assert decision.allowed
        return view()

    return app


def as_a_default(check: Any) -> FastAPI:
    app = FastAPI()

    @app.get("/")
    def told(decision: Decision = Depends(check)) -> str:  # noqa: B008
        assert decision.allowed
        return view()

    return app


def below_another(check: Any) -> FastAPI:
    def who(decision: Annotated[Decision, Depends(check)]) -> str:
        return view() if decision.allowed else "nobody"

    app = FastAPI()

    @app.get("/")
    def told(text: Annotated[str, Depends(who)]) -> str:
        return text

    return app


def below_one_that_yields(check: Any) -> FastAPI:
    def session(decision: Annotated[Decision, Depends(check)]) -> Any:
        yield view()

    app = FastAPI()

    @app.get("/")
    def told(text: Annotated[str, Depends(session)]) -> str:
        return text

    return app


def asked_in_the_view(check: Any) -> FastAPI:
    app = FastAPI()

    @app.get("/")
    def told(request: Request) -> str:
        from_thread.run(check, request)
        return view()

    return app


def of_starlette(check: Any) -> Starlette:
    def told(request: Request) -> PlainTextResponse:
        from_thread.run(check, request)
        return PlainTextResponse(view())

    return Starlette(routes=[Route("/", told)])


FORMS = [
    of_the_route,
    of_the_app,
    of_a_router,
    of_an_included_router,
    as_a_parameter,
    as_a_default,
    below_another,
    below_one_that_yields,
    asked_in_the_view,
    of_starlette,
]


@pytest.mark.parametrize("middleware", [True, False], ids=["the middleware's limiter", "a limiter of its own"])
@pytest.mark.parametrize("form", FORMS)
async def test_a_view_in_a_thread_is_limited(form: Callable[[Any], Starlette], middleware: bool) -> None:
    limiter = limiter_of(Policy("api", "9/day", match="/**"), HINT)
    app = form(limited("hint", limiter=None if middleware else limiter))
    if middleware:
        app.add_middleware(RateLimitMiddleware, limiter=limiter)
    else:
        app.add_exception_handler(QuotaExceeded, quota_exceeded_handler)  # type: ignore[arg-type]
    client = client_of(app)
    answers = [await client.get("/") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[2].json()["violated-policies"] == ["hint"]
    assert answers[2].headers.get_list("ratelimit")[-1].endswith('"hint";r=0;t=43200')
    assert await used(limiter) == 2


async def test_a_view_that_forgets_to_await_is_told_by_which_check() -> None:
    hint = limited("hint")

    async def forgets(request: Request) -> PlainTextResponse:
        hint(request)
        return PlainTextResponse("hello")

    app = RateLimitMiddleware(Starlette(routes=[Route("/", forgets)]), limiter=limiter_of(HINT))
    with pytest.warns(RuntimeWarning, match=r"limited\('hint'\).* was never awaited"):
        await client_of(app).get("/")


def test_a_limiter_that_blocks_is_refused_where_it_is_written() -> None:
    from ratelimit import MemoryStore

    with pytest.raises(ConfigError, match=r"limiter: expected a Limiter of ratelimit, .*one of ratelimit\.sync is for"):
        limited("hint", limiter=BlockingLimiter(MemoryStore(), [HINT]))  # type: ignore[arg-type]
