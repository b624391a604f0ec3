"""The streaming reverse proxy: `Proxy` is the ASGI app that stands behind `RateLimitMiddleware` in a sidecar."""

from ratelimit.proxy.access import AccessLog
from ratelimit.proxy.front import Front
from ratelimit.proxy.proxy import Proxy
from ratelimit.proxy.settings import ProxySettings
from ratelimit.proxy.upstream import Upstream

__all__ = ["AccessLog", "Front", "Proxy", "ProxySettings", "Upstream"]
