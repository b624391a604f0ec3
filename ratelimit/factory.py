"""What a configuration describes, built: its store, its limiter, its usage log, the arguments of the middleware.

This is the one place that knows both the stores and the surfaces. A configuration is asked for here (`configure`,
`load_checked`) where every part is to say whether it can work with it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, Unpack

from ratelimit import otel
from ratelimit.clock import Clock
from ratelimit.config import Config, Problems, SettingArgs, read_config
from ratelimit.directory import Directory
from ratelimit.errors import ConfigError, within
from ratelimit.http.addresses import is_loopback
from ratelimit.http.middleware import SurfaceArgs
from ratelimit.http.policy_check import SurfaceOptions
from ratelimit.limiter import Limiter
from ratelimit.limiter.background import AlertHook
from ratelimit.opening import settings_here, store_from_url, with_timelines
from ratelimit.policy import timelines_of
from ratelimit.regions import Regions
from ratelimit.regions.regions import check_policies
from ratelimit.store import MemoryStore, MirrorStore, TableStore
from ratelimit.store.hashed import HashedUserStore
from ratelimit.usage import UsageLog
from ratelimit.usage.settings import UsageOptions

if TYPE_CHECKING:
    from ratelimit import sync
    from ratelimit.dynamodb import Settings
    from ratelimit.http.api.app import IdempotencyCache
    from ratelimit.http.authz import Authz

logger = logging.getLogger("ratelimit")


def build_store(config: Config) -> TableStore:
    """Return the configured store, not yet open: with a mirror beside it and with hashed users, where that is so.

    Raises `ConfigError`.
    """
    if config.regions is not None:
        check_policies(config.regions, {each.name: each for each in config.policies}, directory=config.directory)
    store = _mirrored(config)
    return store if config.user_hash_key is None else HashedUserStore(store, config.user_hash_key)


def _mirrored(config: Config) -> TableStore:
    timelines = bool(timelines_of(config.policies))
    store = store_from_url(config.store, config.regions, timelines=timelines)
    if config.mirror == "off":
        return store
    try:
        mirror = store_from_url(config.mirror, timelines=timelines)
    except ConfigError as error:
        raise ConfigError("mirror", error.problem) from None
    if config.mirror == config.store or _on_one_table(config.store, config.mirror):
        raise ConfigError("mirror", "is the store itself; name another one, or 'off'")
    return MirrorStore(store, mirror)


def _on_one_table(one: str, other: str) -> bool:
    """Return whether both URLs name one table, however spelled: all that is spent would be written there twice."""
    if one.startswith("memory://") or other.startswith("memory://"):
        return False
    from ratelimit.dynamodb import parse_url, same_table

    return same_table(parse_url(one), parse_url(other))


def working_store(config: Config) -> TableStore:
    """Return the store that requests are counted in: where nothing is limited, one in memory. Raises `ConfigError`."""
    if config.enabled:
        return build_store(config)
    logger.warning("enabled = false: nothing is limited")
    return MemoryStore()


def table_settings(url: str, regions: Regions | None = None) -> Settings:
    """Return the settings of a table from its store's URL. Raises `ConfigError`, also for a store that has no table."""
    from ratelimit.dynamodb import parse_url

    if url.startswith("memory://"):
        raise ConfigError("store", "memory:// has no table; name one: --store 'dynamodb://my-table?region=eu-west-1'")
    with within("store"):
        return settings_here(parse_url(url), regions)


def configured_table(config: Config) -> Settings:
    """Return the settings of the configured table, with what its policies need. Raises as `table_settings` does."""
    return with_timelines(table_settings(config.store, config.regions), bool(timelines_of(config.policies)))


def build_limiter(
    config: Config,
    *,
    store: TableStore | None = None,
    directory: Directory | None = None,
    clock: Clock | None = None,
    on_alert: AlertHook | None = None,
) -> Limiter:
    """Return the limiter of a configuration; its store opens with it, or when first used. Raises `ConfigError`."""
    store = working_store(config) if store is None else store
    if directory is None and config.directory:
        directory = Directory(store.directory, clock=clock, deadline=config.directory_deadline)
    return limiter_on(Limiter, config, store, directory, clock=clock, on_alert=on_alert)


K = TypeVar("K", Limiter, "sync.Limiter")


def limiter_on(
    kind: Callable[..., K],
    config: Config,
    store: object,
    directory: object,
    *,
    clock: Clock | None,
    on_alert: AlertHook | None,
) -> K:
    """Return a limiter of this kind, and of a configuration, on a store and a directory that go with it."""
    limiter = kind(
        store,
        (*config.policies, *config.envoy_config.policies),
        clock=clock,
        deadline=config.deadline,
        denial_cache=config.denial_cache,
        directory=directory,
        on_alert=on_alert,
        enabled=config.enabled,
    )
    limiter.observer = otel.spans(limiter.clock)
    return limiter


L = TypeVar("L", bound=UsageLog)


def build_usage_log(kind: type[L], config: Config, limiter: Limiter, store: TableStore) -> L | None:
    """Return a usage log of this kind on the limiter's store; None where it is off."""
    if config.usage == "off" or not config.enabled:
        return None
    durability, _, directory = config.usage.partition(":")
    options: UsageOptions = {"journal_dir": directory} if durability == "journal" else {}
    options["timelines"] = timelines_of(limiter.policies.values())
    return kind(store, actions=limiter.policies, clock=limiter.clock, **options)


class MiddlewareArgs(SurfaceArgs):
    """What `RateLimitMiddleware` takes besides the app."""

    limiter: Limiter
    usage: UsageLog | None


def surface_args(config: Config) -> SurfaceArgs:
    """Return what a configuration says of any surface."""
    return SurfaceArgs(
        user_from=config.user_from,
        trusted_proxies=config.trusted_proxies,
        ipv6_prefix=config.ipv6_prefix,
        headers=config.headers,
        exempt=config.exempt if config.enabled else (lambda _: True,),
        max_body_bytes=config.max_body_bytes,
    )


def middleware_args(
    config: Config,
    limiter: Limiter | None = None,
    usage: UsageLog | None = None,
    *,
    store: TableStore | None = None,
    clock: Clock | None = None,
    on_alert: AlertHook | None = None,
) -> MiddlewareArgs:
    """Return the middleware's arguments: of a limiter and a usage log that are there, or else of new ones on `store`.

    Raises `ConfigError`.
    """
    if limiter is None:
        store = working_store(config) if store is None else store
        limiter = build_limiter(config, store=store, clock=clock, on_alert=on_alert)
        usage = build_usage_log(UsageLog, config, limiter, store)
        show_metrics(config, limiter, usage)
    return MiddlewareArgs(limiter=limiter, usage=usage, **surface_args(config))


def show_metrics(config: Config, limiter: Limiter | sync.Limiter, usage: UsageLog | sync.UsageLog | None) -> None:
    """Show an app's metrics to who collects them in this process. Raises `ConfigError`."""
    otel.expose(limiter, usage=usage)
    if config.metrics:
        try:
            from ratelimit.prometheus import expose
        except ImportError:
            raise ConfigError("metrics", "needs prometheus_client: pip install prometheus-client") from None
        expose(limiter, usage=usage)


def decision_app(
    config: Config,
    *,
    host: str | None = None,
    store: TableStore | None = None,
    args: MiddlewareArgs | None = None,
    idempotency: IdempotencyCache | None = None,
) -> Authz:
    """Return the decision endpoint for gateways (`/v1/authz`) and the native API beside it, as one ASGI app.

    `host` is where it will listen, None for a unix socket. The configured token is asked of the API's callers; a
    gateway is known by where it stands. `args` are the middleware's, where its parts are there
    already, on this `store`; `idempotency`, as in `Api`, are of an app before this one. Raises `ConfigError`.
    """
    from ratelimit.http.api import Api
    from ratelimit.http.authz import Authz

    check_api_token(config, host)
    store = working_store(config) if store is None else store
    args = args or middleware_args(config, store=store)
    limiter = args["limiter"]
    directory = limiter.directory if isinstance(limiter.directory, Directory) else None
    api = Api(limiter, store, usage=args["usage"], directory=directory, token=config.api_token, idempotency=idempotency)
    return Authz(**args, fallback=api)


def check_api_token(config: Config, host: str | None) -> None:
    """Raise `ConfigError` for a native API beyond loopback without a token: it resets quotas and changes plans.

    `host` as for `decision_app`.
    """
    if config.api_token is None and host is not None and not is_loopback(host):
        how = "set RATELIMIT_API_TOKEN to a secret of at least 16 characters, or listen on 127.0.0.1"
        raise ConfigError("api_token", f"the native API would be open to all who reach {host}: {how}")


def admin_address(config: Config) -> tuple[str, int] | None:
    """Return the admin listener's host and port; None where there is none. Raises `ConfigError`."""
    if config.admin == "off":
        return None
    if config.admin_read_token is not None and config.admin_token in (None, config.admin_read_token):
        raise ConfigError("admin_read_token", "needs an admin_token beside it, and another: it may do less")
    host, _, port = config.admin.rpartition(":")
    if config.admin_token is None and not is_loopback(host):
        how = "set RATELIMIT_ADMIN_TOKEN to a secret of at least 16 characters, or admin to '127.0.0.1:8081' or 'off'"
        raise ConfigError("admin_token", f"metrics and reloads would be open to all who reach {host}: {how}")
    return host.strip("[]"), int(port)


def configure(
    path: str | Path | None = None,
    *,
    clock: Clock | None = None,
    on_alert: AlertHook | None = None,
    **settings: Unpack[SettingArgs],
) -> MiddlewareArgs:
    """Return the arguments of the middleware: `app.add_middleware(RateLimitMiddleware, **configure("ratelimit.toml"))`.

    `path` and `settings` as in `load_config`, with the process's environment variables over both; `clock` and
    `on_alert` are the limiter's, which opens with the app's lifespan, or with the first request. Raises `ConfigError`
    with all that is wrong.
    """
    return middleware_args(load_checked(path, **settings), clock=clock, on_alert=on_alert)


def load_checked(
    path: str | Path | None = None, *, env: Mapping[str, str] = os.environ, **settings: Unpack[SettingArgs]
) -> Config:
    """Load a configuration and ask every part whether it can work with it: store URLs, patterns, sources of users."""
    config, problems = read_config(path, env=env, **settings)
    _try(problems, lambda: build_store(config))
    _try(problems, lambda: admin_address(config))
    _try(problems, lambda: SurfaceOptions(user_from=config.user_from))
    _try(problems, lambda: SurfaceOptions(trusted_proxies=config.trusted_proxies))
    _try(problems, lambda: SurfaceOptions(exempt=config.exempt))
    limiter = Limiter(MemoryStore(), config.policies)
    _try(problems, lambda: Limiter(MemoryStore(), (*config.policies, *config.envoy_config.policies)))
    for name in limiter.policies:
        _try(problems, lambda name=name: SurfaceOptions().policy_check(limiter, name))  # type: ignore[misc]
    problems.raise_any()
    return config


def _try(problems: Problems, build: Callable[[], object]) -> None:
    try:
        build()
    except ConfigError as error:
        problems.add(error)
