"""Settings and the routes of the Django site that the cookbook's examples are mounted into."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.utils.decorators import async_only_middleware

SECRET_KEY = "of a test"
DEBUG = False
ALLOWED_HOSTS = ["*"]
MIDDLEWARE = ["django.contrib.sessions.middleware.SessionMiddleware", "tests.docs.django_site.signed_in"]
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth"]
SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
AUTHENTICATION_BACKENDS = ["tests.docs.django_site.OneUser"]
LOGIN_REDIRECT_URL = "/"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "OPTIONS": {"loaders": [("django.template.loaders.locmem.Loader", {"login.html": "{{ form }}"})]},
    }
]
DATABASES: dict[str, object] = {}
ROOT_URLCONF = __name__
USE_TZ = True

urlpatterns: list[object] = []
signed_in_as: int | None = 7


@async_only_middleware  # type: ignore[untyped-decorator]
def signed_in(get_response: Callable[[HttpRequest], Awaitable[HttpResponse]]) -> object:
    """In the place of Django's own authentication, which needs a database."""

    async def auser() -> object:
        return SimpleNamespace(pk=signed_in_as, is_authenticated=signed_in_as is not None)

    async def middleware(request: Any) -> HttpResponse:
        request.auser = auser
        return await get_response(request)

    return middleware


class OneUser:
    """Alice and her password, without a database."""

    def authenticate(self, request: object, username: str = "", password: str = "") -> object:
        if (username, password) != ("alice", "correct horse"):
            return None
        from django.contrib.auth.models import User

        user = User(pk=1, username="alice")
        user.save = lambda **_: None  # when she was last there
        return user

    def get_user(self, pk: object) -> object:
        return None
