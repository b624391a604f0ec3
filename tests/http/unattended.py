"""An app of whose lifespan the middleware hears nothing; run as `python -m tests.http.unattended`."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from ratelimit import Limiter, Policy, RateLimitMiddleware, UsageLog
from ratelimit.opening import store_from_url
from tests.http.apps import hello


def app_of(kind: str, url: str) -> ASGIApp:
    store = store_from_url(url)
    limiter = Limiter(store, [Policy("hint", "1000/day", match="/**", user_from=("header:x-user",))], deadline=30)
    usage = UsageLog(store)
    checked = RateLimitMiddleware(hello, limiter=limiter, usage=usage)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with usage:
            yield

    async def without_lifespan(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] != "lifespan", "as Django's"
        await hello(scope, receive, send)

    apps: dict[str, ASGIApp] = {
        "mounted": Starlette(routes=[Mount("/api", checked)]),
        "of the outer app": Starlette(routes=[Mount("/api", checked)], lifespan=lifespan),
        "refused by the app": RateLimitMiddleware(without_lifespan, limiter=limiter, usage=usage),
        "off": checked,
    }
    return apps[kind]


if __name__ == "__main__":
    chosen, place = sys.argv[1:]
    uvicorn.run(app_of(chosen, place), port=0, lifespan="off" if chosen == "off" else "auto", log_level="info")
