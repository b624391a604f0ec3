"""`sidecar`: build what a worker serves: the middleware in front of an upstream, or the decision endpoint and API."""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from ratelimit.config import Config
from ratelimit.dashboard.app import Dashboard, Parts
from ratelimit.dashboard.session import TokenLogin, Tokens, tokens_of
from ratelimit.factory import MiddlewareArgs, admin_address, decision_app, middleware_args
from ratelimit.http.api import Api
from ratelimit.http.api.app import IdempotencyCache, without_user
from ratelimit.server.access_log import AccessFormat, AccessLog
from ratelimit.server.admin import AdminBackend, admin_app
from ratelimit.server.asgi import AsgiService
from ratelimit.server.decisions import Decisions
from ratelimit.server.listener import Service
from ratelimit.server.proxy import Proxy
from ratelimit.server.sidecar import ConfigSource, Runtime, ServiceFactory, Sidecar

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from ratelimit.envoy.service import RateLimitService
    from ratelimit.server.upstream import ProxySettings
    from ratelimit.store import TableStore


def sidecar(
    source: ConfigSource,
    *,
    upstream: str | None = None,
    settings: ProxySettings | None = None,
    access_log: AccessFormat = "off",
    host: str | None = None,
    bus_dir: Path | None = None,
    file: str | None = None,
) -> Sidecar:
    """Build it in front of an upstream, or without one. Raises `ConfigError`.

    What the source gives now is served first. `host` is where the public socket listens, None for a unix one. Serve
    it there, and `admin` on the admin socket. Several workers inherit both sockets, and
    are given the same empty directory (0700) as `bus_dir`: whichever of them is asked collects from all. `file` is what
    the source reads, for those who ask.
    """
    log = None if access_log == "off" else AccessLog(access_log, shown=without_user if upstream is None else str)
    served = Sidecar(source, _decisions(host) if upstream is None else _in_front_of(upstream, settings), log=log)
    if admin_address(served.current.runtime.config) is not None:
        backend = AdminBackend(served, bus_dir, file)
        served.admin = AsgiService(admin_app(backend, partial(_page, served, backend)), backend)
    return served


def _page(served: Sidecar, backend: AdminBackend, routes: ASGIApp) -> Dashboard:
    @lru_cache(maxsize=1)
    def parts(runtime: Runtime) -> Parts:
        api = Api(runtime.limiter, runtime.shared, usage=runtime.usage, directory=runtime.directory)
        return Parts(api, runtime.limiter, runtime.usage)

    def tokens() -> Tokens:
        config = served.current.runtime.config
        return tokens_of(config.admin_token, config.admin_read_token)

    def proxies() -> tuple[str, ...]:
        # How many stand in front of the public listener says nothing of this one, and who gets around them could name
        # any address.
        trusted = served.current.runtime.config.trusted_proxies
        return () if isinstance(trusted, int) else tuple(trusted)

    login = TokenLogin(tokens, served.current.runtime.limiter.clock)
    return Dashboard(lambda: parts(served.current.runtime), login, backend.live, routes, proxies)


def _in_front_of(upstream: str, settings: ProxySettings | None) -> ServiceFactory:
    return lambda runtime: Proxy(upstream, _args(runtime), settings)


def _decisions(host: str | None) -> ServiceFactory:
    idempotency: IdempotencyCache | None = None

    def make(runtime: Runtime) -> Service:
        nonlocal idempotency
        if idempotency is None:
            idempotency = IdempotencyCache(runtime.limiter.clock)
        return decision_service(
            runtime.config, runtime.shared, _args(runtime), host=host, idempotency=idempotency, envoy=runtime.envoy
        )

    return make


def _args(runtime: Runtime) -> MiddlewareArgs:
    return middleware_args(runtime.config, runtime.limiter, runtime.usage)


def decision_service(
    config: Config,
    store: TableStore,
    args: MiddlewareArgs,
    *,
    host: str | None = None,
    idempotency: IdempotencyCache | None = None,
    envoy: RateLimitService | None = None,
) -> Service:
    """Build the decision endpoint and the native API, and `POST /json` where there are rules of Envoy; other arguments
    are those of `decision_app`."""
    authz = decision_app(config, host=host, store=store, args=args, idempotency=idempotency)
    app: ASGIApp = authz
    if envoy is not None:
        # Imported here: it needs the extra `envoy`.
        from ratelimit.envoy.json_endpoint import JsonEndpoint

        app = JsonEndpoint(envoy, authz)
    return Decisions(authz, app)
