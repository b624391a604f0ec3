"""Django: the middleware, a decorator of views, a system check. Settings are in `settings.RATELIMIT`.

INSTALLED_APPS = [..., "ratelimit.django"]
MIDDLEWARE = [..., "django.contrib.auth.middleware.AuthenticationMiddleware", "ratelimit.django.RateLimitMiddleware"]
RATELIMIT = {"path": "ratelimit.toml"}
"""

from ratelimit.django.middleware import RateLimitMiddleware, limited

__all__ = ["RateLimitMiddleware", "limited"]
