"""A small Starlette app behind the middleware: `uvicorn examples.app:app`.

It counts in memory. RATELIMIT_STORE=dynamodb://my-table?region=eu-west-1 moves it to DynamoDB; nothing else changes.
"""

from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from ratelimit import RateLimitMiddleware, configure

settings = configure(Path(__file__).with_name("ratelimit.toml"))


async def hint(request: Request) -> JSONResponse:
    return JSONResponse({"hint": "Try a dictionary."})


async def run(request: Request) -> JSONResponse:
    return JSONResponse({"output": "Hello, world!"})


async def totals(request: Request) -> JSONResponse:
    """What a user has used, per action and day. A real app would ask who wants to know."""
    used = await settings["limiter"].totals(request.path_params["user"])
    return JSONResponse({action: {str(day): units for day, units in days.items()} for action, days in used.items()})


async def health(request: Request) -> JSONResponse:
    return JSONResponse({"status": "ok"})


app = Starlette(
    routes=[
        Route("/hints", hint, methods=["POST"]),
        Route("/run", run, methods=["POST"]),
        Route("/totals/{user}", totals),
        Route("/health", health),
    ],
    middleware=[Middleware(RateLimitMiddleware, **settings)],
)
