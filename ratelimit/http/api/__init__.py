"""The native API: the limiter's verbs as JSON over HTTP."""

from ratelimit.http.api.app import Api

__all__ = ["Api"]
