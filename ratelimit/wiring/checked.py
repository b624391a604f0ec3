"""A configuration that every part has been asked about, and the middleware's arguments from it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Unpack

from ratelimit.config import Config, Problems, SettingArgs, read_config
from ratelimit.errors import ConfigError
from ratelimit.http.surface import Surface
from ratelimit.limiter import Limiter
from ratelimit.limiter.alerts import AlertHook
from ratelimit.store import MemoryStore
from ratelimit.wiring.apps import admin_address
from ratelimit.wiring.parts import MiddlewareArgs, middleware_args
from ratelimit.wiring.stores import store_of


def configure(
    path: str | Path | None = None, *, on_alert: AlertHook | None = None, **settings: Unpack[SettingArgs]
) -> MiddlewareArgs:
    """The arguments of the middleware: `app.add_middleware(RateLimitMiddleware, **configure("ratelimit.toml"))`.

    `path` and `settings` as in `load_config`, with the process's environment variables over both; `on_alert` is the
    limiter's. The limiter opens with the app's lifespan, or with the first request. Raises `ConfigError` with all that
    is wrong.
    """
    return middleware_args(load_checked(path, **settings), on_alert=on_alert)


def load_checked(
    path: str | Path | None = None, *, env: Mapping[str, str] = os.environ, **settings: Unpack[SettingArgs]
) -> Config:
    """As `load_config`, and every part has been asked whether it can work with it: store URLs, patterns, sources."""
    config, problems = read_config(path, env=env, **settings)
    _try(problems, lambda: store_of(config))
    _try(problems, lambda: admin_address(config))
    _try(problems, lambda: Surface(user_from=config.user_from))
    _try(problems, lambda: Surface(trusted_proxies=config.trusted_proxies))
    _try(problems, lambda: Surface(exempt=config.exempt))
    limiter = Limiter(MemoryStore(), config.policies)
    for name in limiter.policies:
        _try(problems, lambda name=name: Surface().gate(limiter, name))  # type: ignore[misc]
    problems.raise_any()
    return config


def _try(problems: Problems, build: Callable[[], object]) -> None:
    try:
        build()
    except ConfigError as error:
        problems.add(error)
