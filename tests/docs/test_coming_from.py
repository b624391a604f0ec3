"""The tables of what users of Flask-Limiter, slowapi and django-ratelimit write here: both sides do the same, but for
what the pages say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from types import ModuleType, SimpleNamespace
from typing import Any

import django
import flask_limiter
import pytest
import slowapi
import slowapi.util
from django.http import HttpRequest, HttpResponse
from django.test import Client, override_settings
from django.urls import clear_url_caches, path
from django_ratelimit.decorators import ratelimit
from fastapi import Depends, FastAPI, Request
from flask import Flask, request
from flask_limiter.util import get_remote_address
from slowapi.errors import RateLimitExceeded

from ratelimit import Policy, RateLimitMiddleware, configure
from ratelimit import limited as limited_in_asgi
from ratelimit.django import limited as limited_in_django
from ratelimit.django.middleware import asked
from ratelimit.flask import RateLimit, limited
from tests.http.apps import client_of

pytestmark = pytest.mark.usefixtures("noon")

numbers = count()


def theirs_in_flask(limit: str, **options: Any) -> Flask:
    app = Flask("theirs")
    limiter = flask_limiter.Limiter(get_remote_address, app=app, storage_uri="memory://")
    app.post("/hints")(limiter.limit(limit, **options)(lambda: "ok"))
    return app


def ours_in_flask(quotas: str, **options: Any) -> Flask:
    app = Flask("ours")
    RateLimit(app, user_from=["address"], store="memory://", policies=[Policy("hint", quotas, **options)])
    app.post("/hints")(limited("hint")(lambda: "ok"))
    return app


def statuses(app: Flask, times: int, **more: Any) -> list[int]:
    client = app.test_client()
    return [client.post("/hints", **more).status_code for _ in range(times)]


def own_key(_: Any = None) -> str:
    return request.headers["x-api-key"]


def is_free() -> bool:
    return "x-free" in request.headers


@pytest.mark.parametrize(
    ("limit", "theirs", "options"),
    [
        ("5 per day", {}, {}),
        ("5/day", {}, {}),
        ("3 per 2 hours", {}, {}),
        ("5 per day", {"cost": 2}, {"cost": 2}),
        (
            "1 per day",
            {"exempt_when": lambda: "x-free" in request.headers},
            {"exempt": lambda r: "x-free" in r.headers},
        ),
        ("1 per day", {"deduct_when": lambda answer: answer.status_code != 200}, {"count": "failure"}),
        ("2 per day", {"key_func": own_key}, {"user_from": "header:x-api-key"}),
    ],
)
def test_flask_limiters_decorator_and_ours(limit: str, theirs: dict[str, Any], options: dict[str, Any]) -> None:
    for headers in ({"x-free": "yes", "x-api-key": "a"}, {"x-api-key": "b"}):
        found = statuses(theirs_in_flask(limit, **theirs), 7, headers=headers)
        assert statuses(ours_in_flask(limit, **options), 7, headers=headers) == found


def test_of_several_limits_ours_are_taken_all_or_none() -> None:
    theirs, ours = theirs_in_flask("1 per day; 9 per hour"), ours_in_flask("1 per day; 9 per hour")
    for app in (theirs, ours):
        assert statuses(app, 4) == [200, 429, 429, 429]
    (limiter,) = theirs.extensions["limiter"]
    counted = [limiter.storage.get(key) for key in limiter.storage.storage if "/hour" in key]
    assert counted == [4], "three of which were refused"
    decision = ours.extensions["ratelimit"].limiter.peek("ip:127.0.0.1", "hint")
    assert [state.used for state in decision.quotas] == [1, 1]


def theirs_in_fastapi(limit: str, **options: Any) -> FastAPI:
    app = FastAPI()
    limiter = app.state.limiter = slowapi.Limiter(key_func=slowapi.util.get_remote_address)
    app.add_exception_handler(RateLimitExceeded, slowapi._rate_limit_exceeded_handler)  # type: ignore[arg-type]

    @app.post("/hints")
    @limiter.limit(limit, **options)
    def view(request: Request) -> str:
        return "ok"

    return app


def ours_in_fastapi(quotas: str, **options: Any) -> FastAPI:
    app = FastAPI()
    policies = [Policy("hint", quotas, **options)]
    app.add_middleware(RateLimitMiddleware, **configure(user_from=["address"], policies=policies))
    app.post("/hints", dependencies=[Depends(limited_in_asgi("hint"))])(lambda: "ok")
    return app


def key_of(request: Request) -> str:
    return request.headers["x-api-key"]


@pytest.mark.filterwarnings("ignore:.*iscoroutinefunction:DeprecationWarning")
@pytest.mark.parametrize(
    ("limit", "theirs", "options"),
    [
        ("5/minute", {}, {}),
        ("5 per day", {"cost": 2}, {"cost": 2}),
        ("2/day", {"key_func": key_of}, {"user_from": "header:x-api-key"}),
    ],
)
async def test_slowapis_decorator_and_ours(limit: str, theirs: dict[str, Any], options: dict[str, Any]) -> None:
    found = []
    for app in (theirs_in_fastapi(limit, **theirs), ours_in_fastapi(limit, **options)):
        client = client_of(app)
        found.append([
            (await client.post("/hints", headers={"x-api-key": key})).status_code for key in "aabaaab"
        ])  # fmt: skip
    assert found[0] == found[1]


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "tests.docs.django_site")
    django.setup()
    clear_url_caches()
    known = dict(asked)
    yield
    asked.clear()
    asked.update(known)
    clear_url_caches()


def nobody(get_response: Any) -> Any:
    """In the place of AuthenticationMiddleware, which needs a database."""

    def middleware(request: Any) -> Any:
        request.user = SimpleNamespace(is_authenticated=False, pk=None)
        return get_response(request)

    return middleware


def hint(request: HttpRequest) -> HttpResponse:
    return HttpResponse("ok")


def answers(view: Callable[[Any], Any], posts: list[tuple[Any, Any]], **settings: Any) -> list[int]:
    urls = ModuleType(f"urls_{next(numbers)}")
    urls.urlpatterns = [path("hints", view)]  # type: ignore[attr-defined]
    caches = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "LOCATION": urls.__name__}}
    with override_settings(ROOT_URLCONF=urls, CACHES=caches, **settings):
        return [Client().post("/hints", data, headers=headers).status_code for data, headers in posts]


@pytest.mark.parametrize(
    ("key", "user_from"),
    [
        ("ip", "address"),
        ("user_or_ip", ["user", "address"]),
        ("header:x-api-key", "header:x-api-key"),
        ("post:email", lambda request: request.scope["django.request"].POST["email"]),
    ],
)
@pytest.mark.parametrize(("rate", "quotas"), [("2/d", "2/day"), ("3/5m", "3/5minutes"), ("0/s", "0/second")])
def test_django_ratelimits_decorator_and_ours(site: None, key: str, user_from: Any, rate: str, quotas: str) -> None:
    posts = [({"email": mail}, {"x-api-key": mail}) for mail in ("a@x", "a@x", "b@x", "a@x", "a@x")]
    theirs = answers(ratelimit(key=key, rate=rate, block=True)(hint), posts, MIDDLEWARE=[f"{__name__}.nobody"])
    ours = answers(
        limited_in_django("hint")(hint),
        posts,
        MIDDLEWARE=[f"{__name__}.nobody", "ratelimit.django.RateLimitMiddleware"],
        RATELIMIT={"store": "memory://", "user_from": user_from, "policies": {"hint": {"quotas": quotas}}},
    )
    # Theirs is a PermissionDenied, unless somebody makes another answer of it.
    assert [429 if status == 403 else status for status in theirs] == ours
