"""The surface of apps that threads serve: WSGI, and what Flask and Django are built on. It is the ASGI middleware's own
code (`http/admission.py`), run without an event loop.

    from ratelimit.wsgi import RateLimitMiddleware

    app = RateLimitMiddleware.from_config(app, "ratelimit.toml")
"""

from ratelimit.wsgi.app_request import AppRequest
from ratelimit.wsgi.middleware import RateLimitMiddleware, configure, limited

__all__ = ["AppRequest", "RateLimitMiddleware", "configure", "limited"]
