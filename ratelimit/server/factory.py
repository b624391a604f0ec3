"""`sidecar`: what a worker serves. For the runner (`server.serve`), which owns sockets, signals and processes.

In the parent, before any worker: `admin_address(config)` says where to bind the admin socket, None where it is off.
In each worker, inside of its event loop or before it: `one = sidecar(source, …)`; then serve `one.app` on the public
socket and `one.admin` (None where it is off) on the admin socket, both with their lifespans.

    SIGHUP     `await one.reload()` in each worker; it raises `ConfigError` or `StoreUnavailable` and then nothing has
               changed. It logs either way.
    SIGTERM    `one.stopping = True` first: `/health/ready` answers 503 from then on, and everything else goes on.

Several workers: all serve the one admin socket, inherited like the public one, and are given the same empty directory
(0700, made by the parent and removed at its end) as `bus_dir`. Whichever worker is asked collects from all of them.
"""

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
    """In front of an upstream; without one, the decision endpoint and the native API. Raises `ConfigError`.

    `host` is where `app` will be listened for, None for a unix socket. What the source gives now is served first.
    """
    proxying = upstream is not None
    one = Sidecar(source, _decisions(host) if upstream is None else _in_front_of(upstream, settings))
    log = AccessLog(
        one,
        access_log,
        shown=str if proxying else _without_user,
        client=lambda: one.current.runtime.config.user_hash_key is None,
    )
    one.app, one.refused = TraceMiddleware.around(log), log.refused
    if admin_address(one.current.runtime.config) is not None:
        board = ServerBackend(one, bus_dir)
        one.admin = admin_app(board, board.token, board.lifespan)
    return one


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
        return decision_app(runtime.config, host=host, store=runtime.shared, args=args, idempotency=idempotency)

    return make


def _without_user(path: str) -> str:
    """The API's own paths say whom they are about."""
    return _USER.sub("*", path)


def proxy_app(
    config: Config,
    upstream: str,
    settings: ProxySettings | None = None,
    *,
    access_log: AccessFormat = "off",
    args: MiddlewareArgs | None = None,
) -> ASGIApp:
    """The sidecar in front of an upstream, as an ASGI app. Raises `ConfigError`; needs the extra `sidecar`.

    `args` are the middleware's, where its parts are there already.
    """
    proxy = Proxy(upstream, settings, trusted_proxies=config.trusted_proxies)
    app = RequestIdMiddleware(RateLimitMiddleware(proxy, **(args or middleware_args(config))))
    return AccessLog(app, access_log, client=lambda: config.user_hash_key is None)
