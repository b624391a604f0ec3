"""The parts that a configuration describes: the limiter, the usage log, the arguments of the middleware."""

from __future__ import annotations

from typing import TypedDict, TypeVar

from ratelimit.clock import Clock
from ratelimit.config import Config, HeadersMode
from ratelimit.directory import Directory
from ratelimit.http.tracing import spans
from ratelimit.limiter import Limiter
from ratelimit.limiter.alerts import AlertHook
from ratelimit.policy import Exempt, UserFrom
from ratelimit.store import TableStore
from ratelimit.usage import UsageLog
from ratelimit.usage.options import Options
from ratelimit.wiring.stores import store_of


def limiter_from(
    config: Config,
    *,
    store: TableStore | None = None,
    directory: Directory | None = None,
    clock: Clock | None = None,
    on_alert: AlertHook | None = None,
) -> Limiter:
    """The limiter that a configuration describes; its store opens with it, or when first used. Raises `ConfigError`."""
    store = store_of(config) if store is None else store
    if directory is None and config.directory:
        directory = Directory(store.directory, clock=clock)
    limiter = Limiter(
        store,
        config.policies,
        clock=clock,
        deadline=config.deadline,
        denial_cache=config.denial_cache,
        directory=directory,
        on_alert=on_alert,
    )
    limiter.observer = spans(limiter.clock)
    return limiter


L = TypeVar("L", bound=UsageLog)


def usage_from(config: Config, limiter: Limiter, store: TableStore) -> UsageLog | None:
    """The usage log on the limiter's store; None where it is off."""
    return usage_as(UsageLog, config, limiter, store)


def usage_as(kind: type[L], config: Config, limiter: Limiter, store: TableStore) -> L | None:
    """As `usage_from`, of a kind of one's own."""
    if config.usage == "off":
        return None
    durability, _, directory = config.usage.partition(":")
    options: Options = {"durability": "journal", "journal_dir": directory} if durability == "journal" else {}
    return kind(store, actions=limiter.policies, clock=limiter.clock, **options)


class MiddlewareArgs(TypedDict):
    """What `RateLimitMiddleware` takes besides the app."""

    limiter: Limiter
    user_from: tuple[UserFrom, ...]
    trusted_proxies: int | tuple[str, ...]
    ipv6_prefix: int
    headers: HeadersMode
    exempt: tuple[Exempt, ...]
    usage: UsageLog | None


def middleware_args(
    config: Config,
    *,
    store: TableStore | None = None,
    clock: Clock | None = None,
    on_alert: AlertHook | None = None,
) -> MiddlewareArgs:
    """As `configure`, from a configuration that is loaded."""
    store = store_of(config) if store is None else store
    limiter = limiter_from(config, store=store, clock=clock, on_alert=on_alert)
    return args_of(config, limiter, usage_from(config, limiter, store))


def args_of(config: Config, limiter: Limiter, usage: UsageLog | None) -> MiddlewareArgs:
    """As `middleware_args`, of a limiter and a usage log that are there."""
    return MiddlewareArgs(
        limiter=limiter,
        usage=usage,
        user_from=config.user_from,
        trusted_proxies=config.trusted_proxies,
        ipv6_prefix=config.ipv6_prefix,
        headers=config.headers,
        exempt=config.exempt,
    )
