"""The HTTP surface: who a request is from, which policies it meets, what the answer says. `RateLimitMiddleware`."""

from ratelimit.http.addresses import TrustedProxies
from ratelimit.http.body import InvalidBody
from ratelimit.http.dependency import MissingUser, describe_refusals, limited, quota_exceeded_handler
from ratelimit.http.headers import EXPOSE_HEADERS, HeaderStyle
from ratelimit.http.middleware import RateLimitMiddleware
from ratelimit.http.request_handler import RateLimitState

__all__ = [
    "EXPOSE_HEADERS",
    "HeaderStyle",
    "InvalidBody",
    "MissingUser",
    "RateLimitMiddleware",
    "RateLimitState",
    "TrustedProxies",
    "describe_refusals",
    "limited",
    "quota_exceeded_handler",
]
