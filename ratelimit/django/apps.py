"""The app that `INSTALLED_APPS` names: it has the system check."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import register


class RateLimitConfig(AppConfig):  # type: ignore[misc]
    """Named apart from other packages called `ratelimit`."""

    name = "ratelimit.django"
    label = "ratelimit_dynamodb"

    def ready(self) -> None:
        """Register the check."""
        from ratelimit.django.checks import check_settings

        register(check_settings)
