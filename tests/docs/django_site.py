"""The settings and the routes of the Django site that the cookbook's examples are mounted into."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.utils.decorators import async_only_middleware

SECRET_KEY = "of a test"
DEBUG = False
ALLOWED_HOSTS = ["*"]
MIDDLEWARE = ["tests.docs.django_site.signed_in"]
INSTALLED_APPS: list[str] = []
DATABASES: dict[str, object] = {}
ROOT_URLCONF = __name__
USE_TZ = True


@async_only_middleware  # type: ignore[untyped-decorator]
def signed_in(get_response: Callable[[HttpRequest], Awaitable[HttpResponse]]) -> object:
    """In the place of Django's own authentication, which needs a database."""

    async def auser() -> object:
        return SimpleNamespace(pk=7, is_authenticated=True)

    async def middleware(request: Any) -> HttpResponse:
        request.auser = auser
        return await get_response(request)

    return middleware


async def login(request: HttpRequest) -> HttpResponse:
    return HttpResponse(status=200 if request.GET.get("password") == "right" else 401)


urlpatterns = [path("login", login)]
