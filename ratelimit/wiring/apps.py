"""The apps that `ratelimit serve` serves, and where they may be open to whom."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ratelimit.config import Config
from ratelimit.directory import Directory
from ratelimit.errors import ConfigError
from ratelimit.http.addresses import is_loopback
from ratelimit.store import TableStore
from ratelimit.wiring.parts import MiddlewareArgs, middleware_args
from ratelimit.wiring.stores import store_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from ratelimit.http.api.idempotency import Replays
    from ratelimit.proxy.access import AccessFormat
    from ratelimit.proxy.settings import ProxySettings


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
    # Imported here: an app that mounts the middleware need not have a proxy's dependencies.
    from ratelimit.http import RateLimitMiddleware
    from ratelimit.proxy import AccessLog, Front, Proxy

    proxy = Proxy(upstream, settings, trusted_proxies=config.trusted_proxies)
    app = Front(RateLimitMiddleware(proxy, **(args or middleware_args(config))))
    return AccessLog(app, access_log, client=lambda: config.user_hash_key is None)


def decision_app(
    config: Config,
    *,
    host: str | None = None,
    store: TableStore | None = None,
    args: MiddlewareArgs | None = None,
    replays: Replays | None = None,
) -> ASGIApp:
    """The decision endpoint for gateways (`/v1/authz`) and the native API beside it, as one ASGI app on one limiter.

    `host` is where it will listen, None for a unix socket. The configured token is asked of the API's callers; a
    gateway is known by where it stands. `args` as in `proxy_app`, on this `store`, and `replays` as in
    `Api`, are of an app before this one. Raises `ConfigError`.
    """
    from ratelimit.http.api import Api
    from ratelimit.http.authz import Authz

    check_api_token(config, host)
    store = store_of(config) if store is None else store
    args = args or middleware_args(config, store=store)
    limiter = args["limiter"]
    directory = limiter.directory if isinstance(limiter.directory, Directory) else None
    api = Api(limiter, store, usage=args["usage"], directory=directory, token=config.api_token, replays=replays)
    return Authz(**args, fallback=api)


def check_api_token(config: Config, host: str | None) -> None:
    """Whoever reaches the native API may reset quotas and change plans: beyond loopback it needs a token.

    `host` as for `decision_app`. Raises `ConfigError`.
    """
    if config.api_token is None and host is not None and not is_loopback(host):
        how = "set RATELIMIT_API_TOKEN to a secret of at least 16 characters, or listen on 127.0.0.1"
        raise ConfigError("api_token", f"the native API would be open to all who reach {host}: {how}")


def admin_address(config: Config) -> tuple[str, int] | None:
    """The host and port to listen on; None where there is no admin listener. Raises `ConfigError`."""
    if config.admin == "off":
        return None
    host, _, port = config.admin.rpartition(":")
    if config.admin_token is None and not is_loopback(host):
        how = "set RATELIMIT_ADMIN_TOKEN to a secret of at least 16 characters, or admin to '127.0.0.1:8081' or 'off'"
        raise ConfigError("admin_token", f"metrics and reloads would be open to all who reach {host}: {how}")
    return host.strip("[]"), int(port)
