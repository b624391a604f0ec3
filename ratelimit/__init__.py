"""Exact rate limiting on one DynamoDB table, or in memory: a middleware, a limiter, and what they speak of.

    from ratelimit import Limiter, Policy, open_store

    async with Limiter(await open_store("memory://"), [Policy("hint", quotas="5/day")]) as limiter:
        decision = await limiter.check("alice", "hint")

AWS's client is not imported before a `dynamodb://` store is made, nor Starlette before something here needs it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from ratelimit import clock
from ratelimit.decision import Decision, JointDecision, QuotaState
from ratelimit.directory import Directory
from ratelimit.errors import (
    AccessDenied,
    ConfigError,
    HoldExpired,
    IndexNotFound,
    InvalidAction,
    InvalidCost,
    InvalidEvent,
    InvalidInput,
    InvalidQuota,
    InvalidUser,
    LimiterClosed,
    NotHeld,
    QuotaExceeded,
    RateLimitError,
    ReplicaMismatch,
    SlotNeeded,
    StoreMisconfigured,
    StoreThrottled,
    StoreUnavailable,
    TableMismatch,
    TableNotFound,
    UnknownAction,
)
from ratelimit.event import UsageEvent
from ratelimit.limiter import Alert, Limiter, Reservation, Slot, Spend
from ratelimit.opening import open_store
from ratelimit.policy import Policy
from ratelimit.quota import UNLIMITED, Quota, Window
from ratelimit.store import MemoryStore
from ratelimit.store.directory import Identity, Plan, User

if TYPE_CHECKING:
    from ratelimit.config import Config, load_config
    from ratelimit.factory import configure
    from ratelimit.http import (
        EXPOSE_HEADERS,
        InvalidBody,
        MissingUser,
        RateLimitMiddleware,
        describe_refusals,
        limited,
        quota_exceeded_handler,
    )
    from ratelimit.usage import UsageLog

__version__ = "0.1.0"
COMPILED: Final = not clock.__file__.endswith(".py")
"""Whether this is the build of which `pyproject.toml` lists what is made into C."""

__all__ = [
    "EXPOSE_HEADERS",
    "UNLIMITED",
    "AccessDenied",
    "Alert",
    "Config",
    "ConfigError",
    "Decision",
    "Directory",
    "HoldExpired",
    "Identity",
    "IndexNotFound",
    "InvalidAction",
    "InvalidBody",
    "InvalidCost",
    "InvalidEvent",
    "InvalidInput",
    "InvalidQuota",
    "InvalidUser",
    "JointDecision",
    "Limiter",
    "LimiterClosed",
    "MemoryStore",
    "MissingUser",
    "NotHeld",
    "Plan",
    "Policy",
    "Quota",
    "QuotaExceeded",
    "QuotaState",
    "RateLimitError",
    "RateLimitMiddleware",
    "ReplicaMismatch",
    "Reservation",
    "Slot",
    "SlotNeeded",
    "Spend",
    "StoreMisconfigured",
    "StoreThrottled",
    "StoreUnavailable",
    "TableMismatch",
    "TableNotFound",
    "UnknownAction",
    "UsageEvent",
    "UsageLog",
    "User",
    "Window",
    "__version__",
    "configure",
    "describe_refusals",
    "limited",
    "load_config",
    "open_store",
    "quota_exceeded_handler",
]

_LATER: Final = {
    "EXPOSE_HEADERS": "ratelimit.http",
    "Config": "ratelimit.config",
    "InvalidBody": "ratelimit.http",
    "MissingUser": "ratelimit.http",
    "RateLimitMiddleware": "ratelimit.http",
    "UsageLog": "ratelimit.usage",
    "configure": "ratelimit.factory",
    "describe_refusals": "ratelimit.http",
    "limited": "ratelimit.http",
    "load_config": "ratelimit.config",
    "quota_exceeded_handler": "ratelimit.http",
}
"""Imported when they are asked for: a function that is started for a single call has no use for a web framework."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_LATER[name]), name)
    return found
