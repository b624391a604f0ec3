"""`sidecar`: build what a worker serves: the middleware in front of an upstream, or the decision endpoint and API."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from ratelimit.config import Config
from ratelimit.factory import MiddlewareArgs, admin_address, decision_app, middleware_args
from ratelimit.http import RateLimitMiddleware
from ratelimit.http.admin import admin_app
from ratelimit.http.api.idempotency import IdempotencyCache
from ratelimit.http.tracing import TraceMiddleware
from ratelimit.server.access_log import AccessFormat, AccessLog
from ratelimit.server.admin_backend import ServerBackend
from ratelimit.server.proxy import Proxy
from ratelimit.server.request_id import RequestIdMiddleware
from ratelimit.server.runtime import Runtime
from ratelimit.server.sidecar import AppFactory, ConfigSource, Sidecar

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from ratelimit.server.upstream import ProxySettings


_USER = re.compile(r"(?<=^/v1/users/)[^/]+")


def sidecar(
    source: ConfigSource,
    *,
    upstream: str | None = None,
    settings: ProxySettings | None = None,
    access_log: AccessFormat = "off",
    host: str | None = None,
    bus_dir: Path | None = None,
) -> Sidecar:
    """Build it in front of an upstream, or without one. Raises `ConfigError`.

    What the source gives now is served first. `host` is where the public socket listens, None for a unix one. Serve
    `app` there, and `admin` on the admin socket, both with their lifespans. Several workers inherit both sockets, and
    are given the same empty directory (0700) as `bus_dir`: whichever of them is asked collects from all.
    """
    served = Sidecar(source, _decisions(host) if upstream is None else _in_front_of(upstream, settings))
    log = AccessLog(
        served,
        access_log,
        shown=_without_user if upstream is None else str,
        client=lambda: served.current.runtime.config.user_hash_key is None,
    )
    served.app, served.refused = TraceMiddleware.around(log), log.refused
    if admin_address(served.current.runtime.config) is not None:
        backend = ServerBackend(served, bus_dir)
        served.admin = admin_app(backend, backend.token, backend.lifespan)
    return served


def _in_front_of(upstream: str, settings: ProxySettings | None) -> AppFactory:
    def make(runtime: Runtime) -> ASGIApp:
        args = middleware_args(runtime.config, runtime.limiter, runtime.usage)
        return proxy_app(runtime.config, upstream, settings, args=args)

    return make


def _decisions(host: str | None) -> AppFactory:
    idempotency: IdempotencyCache | None = None

    def make(runtime: Runtime) -> ASGIApp:
        nonlocal idempotency
        if idempotency is None:
            idempotency = IdempotencyCache(runtime.limiter.clock)
        args = middleware_args(runtime.config, runtime.limiter, runtime.usage)
        app = decision_app(runtime.config, host=host, store=runtime.shared, args=args, idempotency=idempotency)
        if runtime.envoy is None:
            return app
        # Imported here: it needs the extra `envoy`.
        from ratelimit.envoy.json_endpoint import JsonEndpoint

        return JsonEndpoint(runtime.envoy, app)

    return make


def _without_user(path: str) -> str:
    # The API's own paths say whom they are about.
    return _USER.sub("*", path)


def proxy_app(
    config: Config,
    upstream: str,
    settings: ProxySettings | None = None,
    *,
    args: MiddlewareArgs | None = None,
) -> ASGIApp:
    """Build the middleware in front of an upstream. Raises `ConfigError`.

    `args` are the middleware's, where its parts are there already.
    """
    proxy = Proxy(upstream, settings, trusted_proxies=config.trusted_proxies)
    return RequestIdMiddleware(RateLimitMiddleware(proxy, **(args or middleware_args(config))))
