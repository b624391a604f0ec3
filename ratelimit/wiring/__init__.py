"""Where the parts meet: a store from its URL, a limiter and a middleware from a configuration; nowhere else."""

from ratelimit.wiring.apps import admin_address, check_api_token, decision_app, proxy_app
from ratelimit.wiring.checked import configure, load_checked
from ratelimit.wiring.parts import MiddlewareArgs, args_of, limiter_from, middleware_args, usage_as, usage_from
from ratelimit.wiring.stores import (
    OpeningStore,
    open_store,
    store_from_url,
    store_of,
    store_stats,
    table_settings,
)

__all__ = [
    "MiddlewareArgs",
    "OpeningStore",
    "admin_address",
    "args_of",
    "check_api_token",
    "configure",
    "decision_app",
    "limiter_from",
    "load_checked",
    "middleware_args",
    "open_store",
    "proxy_app",
    "store_from_url",
    "store_of",
    "store_stats",
    "table_settings",
    "usage_as",
    "usage_from",
]
