"""`configure`: what a configuration describes, built for threads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Unpack, cast

from ratelimit.clock import Clock
from ratelimit.config import Config, SettingArgs
from ratelimit.errors import ConfigError
from ratelimit.factory import build_usage_log, limiter_on, load_checked, show_metrics, surface_args, working_store
from ratelimit.http.middleware import SurfaceArgs
from ratelimit.limiter.alerts import AlertHook
from ratelimit.sync import Directory, Limiter, UsageLog
from ratelimit.sync.store import store_from, store_of


class WsgiArgs(SurfaceArgs):
    """What `RateLimitMiddleware` takes besides the app."""

    limiter: Limiter
    usage: UsageLog | None


def configure(
    path: str | Path | None = None,
    *,
    clock: Clock | None = None,
    on_alert: AlertHook | None = None,
    **settings: Unpack[SettingArgs],
) -> WsgiArgs:
    """Return the arguments of the middleware, as `ratelimit.configure` does, for threads.

    The store opens with the first check. Raises `ConfigError` with all that is wrong.
    """
    config = load_checked(path, **settings)
    limiter = build_limiter(config, clock=clock, on_alert=on_alert)
    usage = cast(
        "UsageLog | None",
        build_usage_log(cast(Any, UsageLog), config, cast(Any, limiter), cast(Any, limiter.store)),
    )
    show_metrics(config, limiter, usage)
    return WsgiArgs(limiter=limiter, usage=usage, **surface_args(config))


def build_limiter(config: Config, *, clock: Clock | None = None, on_alert: AlertHook | None = None) -> Limiter:
    """Return the limiter of a configuration, for threads. Raises `ConfigError`."""
    if config.mirror != "off":
        raise ConfigError("mirror", "is written to by apps with an event loop and by the sidecar; leave it out here")
    if config.enabled:
        store = store_from(config.store, user_hash_key=config.user_hash_key, regions=config.regions)
    else:
        store = store_of(working_store(config))
    directory = Directory(store.directory) if config.directory else None
    return limiter_on(Limiter, config, store, directory, clock=clock, on_alert=on_alert)
