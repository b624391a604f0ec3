"""What a limited view costs: Django's beside one with django-ratelimit, Flask's beside one with Flask-Limiter.

Requests go to the WSGI app in the contender's process, one after the other: no server's time is in the figures.
"""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

from loadtest.bench.ours import ROOMY, USERS
from loadtest.bench.report import BenchTarget, Findings, Rounds, Row, Seconds
from loadtest.bench.runner import Entry, Measured, contest
from loadtest.bench.stub import stub_server
from loadtest.bench.sync import contender
from loadtest.bench.worker import Contender

DJANGO, FLASK = "Django", "Flask"
DJANGO_OURS = "Django, our middleware, memory"
DJANGO_THEIRS = "Django, django-ratelimit, locmem"
FLASK_OURS = "Flask, our extension, memory"
FLASK_THEIRS = "Flask, Flask-Limiter, memory, with headers"


def run(rounds: Rounds = 9, seconds: Seconds = 0.5) -> Findings:
    """A limited view of Django and of Flask, by us and by others: one request after the other, in a process each."""
    with stub_server() as endpoint:
        measured, notes = contest(_entries(endpoint), rounds=rounds, seconds=seconds)
    return Findings([Row(name, _figures(name, measured)) for name in measured], _targets(measured), notes)


def _entries(endpoint: str) -> list[Entry]:
    table: dict[str, Any] = {"store": f"dynamodb://bench?endpoint={endpoint}"}
    django, flask = "loadtest.bench.frameworks:django_view", "loadtest.bench.frameworks:flask_view"
    return [
        Entry(DJANGO, django),
        Entry(DJANGO_OURS, django, {"by": "middleware"}),
        Entry("Django, our decorator, memory", django, {"by": "limited"}),
        Entry(DJANGO_THEIRS, django, {"by": "django-ratelimit"}),
        Entry("Django, our middleware, DynamoDB (stub)", django, {"by": "middleware", **table}),
        Entry(FLASK, flask),
        Entry(FLASK_OURS, flask, {"by": "extension"}),
        Entry("Flask, our decorator, memory", flask, {"by": "limited"}),
        Entry(FLASK_THEIRS, flask, {"by": "Flask-Limiter"}),
        Entry("Flask, our extension, DynamoDB (stub)", flask, {"by": "extension", **table}),
    ]


def _figures(name: str, measured: dict[str, Measured]) -> dict[str, float | None]:
    return {
        "requests/s": measured[name].median("per_second"),
        "CPU µs per request": measured[name].median("cpu_us"),
        "of which for the limit": _limits(name, measured),
    }


def _limits(name: str, measured: dict[str, Measured]) -> float | None:
    framework, _, limited = name.partition(",")
    if not limited or framework not in measured or name not in measured:
        return None
    return measured[name].median("cpu_us") - measured[framework].median("cpu_us")


def _targets(measured: dict[str, Measured]) -> list[BenchTarget]:
    targets = []
    for ours, theirs in ((DJANGO_OURS, DJANGO_THEIRS), (FLASK_OURS, FLASK_THEIRS)):
        of_ours, of_theirs = _limits(ours, measured), _limits(theirs, measured)
        if of_ours is not None and of_theirs:
            targets.append(
                BenchTarget(f"CPU for the limit, {ours}, times that of: {theirs}", of_ours / of_theirs, "at most", 1)
            )
    return targets


# The contenders: one small view, as it is, limited by us, and by what others limit it with today.

_ADDRESSES: Final = {f"user-{number}": f"198.51.100.{number % 256}" for number in range(USERS)}
_ENVIRON: Final[dict[str, Any]] = {
    "REQUEST_METHOD": "POST", "SCRIPT_NAME": "", "PATH_INFO": "/hints", "QUERY_STRING": "", "RAW_URI": "/hints",
    "SERVER_NAME": "127.0.0.1", "SERVER_PORT": "8000", "SERVER_PROTOCOL": "HTTP/1.1", "REMOTE_PORT": "50000",
    "HTTP_HOST": "127.0.0.1:8000", "HTTP_USER_AGENT": "bench", "HTTP_ACCEPT": "*/*", "CONTENT_LENGTH": "0",
    "wsgi.version": (1, 0), "wsgi.url_scheme": "http", "wsgi.multithread": True, "wsgi.multiprocess": False,
    "wsgi.run_once": False,
}  # fmt: skip


@asynccontextmanager
async def django_view(by: str = "", store: str = "memory://") -> AsyncIterator[Contender]:
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
            "policies": {"hint": {"quotas": ROOMY} | ({"match": "POST /hints"} if by == "middleware" else {})},
        },
    )
    import django

    django.setup()
    from django.core.wsgi import get_wsgi_application
    from django.urls import path

    globals()["urlpatterns"] = [path("hints", _view_of_django(by))]
    yield contender(_requests(get_wsgi_application()))


def _view_of_django(by: str) -> Callable[[Any], Any]:
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
async def flask_view(by: str = "", store: str = "memory://") -> AsyncIterator[Contender]:
    """`by` is who limits: nobody, our extension, our decorator, or Flask-Limiter in memory, with its headers."""
    from flask import Flask

    from ratelimit import Policy
    from ratelimit.flask import RateLimit, limited

    app = Flask(__name__)

    def hint() -> str:
        return "Try a dictionary.\n"

    view: Callable[[], Any] = hint
    if by in ("extension", "limited"):
        policy = Policy("hint", ROOMY, match="POST /hints" if by == "extension" else ())
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
