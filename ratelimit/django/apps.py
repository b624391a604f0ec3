"""The app that `INSTALLED_APPS` names, with what `manage.py check` finds wrong before the first request."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, Final

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.urls import get_resolver

from ratelimit.django.middleware import asked, surface
from ratelimit.errors import ConfigError
from ratelimit.store import MemoryStore

OURS: Final = "ratelimit.django.RateLimitMiddleware"
AUTHENTICATION: Final = "django.contrib.auth.middleware.AuthenticationMiddleware"


class RateLimitConfig(AppConfig):  # type: ignore[misc]
    """Named apart from other packages called `ratelimit`."""

    name = "ratelimit.django"
    label = "ratelimit_dynamodb"

    def ready(self) -> None:
        register(check_settings)


def check_settings(app_configs: object, **_: Any) -> list[CheckMessage]:
    """Check settings, the order of the middleware, and the actions that views are limited by."""
    try:
        made = surface(is_async=False)
    except (ConfigError, ImportError, TypeError) as error:
        return [Error(str(error), hint="See settings.RATELIMIT.", id="ratelimit.E001")]
    return [*_middleware(made.reads_user), *_actions(sorted(made.limiter.policies)), *_store(made)]


def _middleware(reads_user: bool) -> list[CheckMessage]:
    names = list(settings.MIDDLEWARE)
    if OURS not in names:
        return [Warning(f"MIDDLEWARE lacks {OURS!r}: no request is checked.", id="ratelimit.W001")]
    if reads_user and AUTHENTICATION in names[names.index(OURS) :]:
        hint = "Move it behind, or set user_from to what needs no user."
        text = f"{OURS} stands before AuthenticationMiddleware, so that everybody is limited by address."
        return [Error(text, hint=hint, id="ratelimit.E002")]
    return []


def _actions(known: list[str]) -> list[CheckMessage]:
    try:
        _ = get_resolver().url_patterns  # which imports the views
    except (ImproperlyConfigured, AttributeError):
        return []
    found: list[CheckMessage] = []
    for view, action in asked.items():
        if action not in known:
            near = get_close_matches(action, known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(known) or 'none'}."
            found.append(
                Error(f"{view} is limited by {action!r}, and no policy is named so.", hint=hint, id="ratelimit.E003")
            )
    return found


def _store(made: Any) -> list[CheckMessage]:
    if settings.DEBUG or not isinstance(made.limiter.store.inner, MemoryStore):
        return []
    text = "The store is memory://, in which each worker counts for itself."
    return [Warning(text, hint="Name a table: dynamodb://my-table?region=eu-west-1", id="ratelimit.W002")]
