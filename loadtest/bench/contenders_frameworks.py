"""One small view of Django and one of Flask: as they are, limited by us, and by what their users limit them with today.

Requests go to the WSGI app in this process, one after the other: no server's time is in the figures.
"""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

from loadtest.bench.contenders_sync import USERS, contender
from loadtest.bench.worker import Contender

QUOTA: Final = "1000000000/hour"
_ADDRESSES: Final = {f"user-{number}": f"198.51.100.{number % 256}" for number in range(USERS)}
_ENVIRON: Final[dict[str, Any]] = {
    "REQUEST_METHOD": "POST", "SCRIPT_NAME": "", "PATH_INFO": "/hints", "QUERY_STRING": "", "RAW_URI": "/hints",
    "SERVER_NAME": "127.0.0.1", "SERVER_PORT": "8000", "SERVER_PROTOCOL": "HTTP/1.1", "REMOTE_PORT": "50000",
    "HTTP_HOST": "127.0.0.1:8000", "HTTP_USER_AGENT": "bench", "HTTP_ACCEPT": "*/*", "CONTENT_LENGTH": "0",
    "wsgi.version": (1, 0), "wsgi.url_scheme": "http", "wsgi.multithread": True, "wsgi.multiprocess": False,
    "wsgi.run_once": False,
}  # fmt: skip


@asynccontextmanager
async def django(by: str = "", store: str = "memory://") -> AsyncIterator[Contender]:
    """`by` is who limits: nobody, our middleware, our decorator, or django-ratelimit on its cache in memory."""
    from django.conf import settings

    settings.configure(
        SECRET_KEY="of a benchmark",
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF=__name__,
        CACHES={"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}},
        MIDDLEWARE=["ratelimit.django.RateLimitMiddleware"] if by in ("middleware", "limited") else [],
        RATELIMIT={
            "store": store,
            "deadline": 30,
            "user_from": "address",
            "policies": {"hint": {"quotas": QUOTA} | ({"match": "POST /hints"} if by == "middleware" else {})},
        },
    )
    import django as framework

    framework.setup()
    from django.core.wsgi import get_wsgi_application
    from django.urls import path

    globals()["urlpatterns"] = [path("hints", _django_view(by))]
    yield contender(_requests(get_wsgi_application()))


def _django_view(by: str) -> Callable[[Any], Any]:
    from django.http import HttpResponse

    def hint(request: Any) -> Any:
        return HttpResponse("Try a dictionary.\n")

    if by == "limited":
        from ratelimit.django import limited

        return limited("hint")(hint)  # type: ignore[no-any-return]
    if by == "django-ratelimit":
        from django_ratelimit.decorators import ratelimit

        return ratelimit(key="ip", rate="1000000000/h", block=True)(hint)  # type: ignore[no-any-return]
    return hint


@asynccontextmanager
async def flask(by: str = "", store: str = "memory://") -> AsyncIterator[Contender]:
    """`by` is who limits: nobody, our extension, our decorator, or Flask-Limiter in memory, with its headers."""
    from flask import Flask

    from ratelimit import Policy
    from ratelimit.flask import RateLimit, limited

    app = Flask(__name__)

    def hint() -> str:
        return "Try a dictionary.\n"

    view: Callable[[], Any] = hint
    if by in ("extension", "limited"):
        policy = Policy("hint", QUOTA, match="POST /hints" if by == "extension" else ())
        RateLimit(app, store=store, deadline=30, user_from=["address"], policies=[policy])
        view = limited("hint")(hint) if by == "limited" else hint
    elif by == "Flask-Limiter":
        from flask_limiter import Limiter
        from flask_limiter.util import get_remote_address

        limiter = Limiter(get_remote_address, app=app, storage_uri=store, headers_enabled=True)
        view = limiter.limit("1000000000 per hour")(hint)
    app.post("/hints")(view)
    yield contender(_requests(app))


def _requests(app: Callable[..., Iterable[bytes]]) -> Callable[[str], None]:
    def start_response(status: str, headers: object, exc_info: object = None) -> None:
        if status != "200 OK":
            raise AssertionError(status)

    def request(user: str) -> None:
        environ = _ENVIRON | {"REMOTE_ADDR": _ADDRESSES[user], "wsgi.input": io.BytesIO(), "wsgi.errors": io.StringIO()}
        body = app(environ, start_response)
        if b"".join(body) != b"Try a dictionary.\n":
            raise AssertionError("another answer")
        if hasattr(body, "close"):
            body.close()

    return request
