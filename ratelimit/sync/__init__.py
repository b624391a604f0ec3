"""The limiter for code without an event loop: the same names, arguments and results, and each call blocks.

    from ratelimit import Policy
    from ratelimit.sync import Limiter, open_store

    with Limiter(open_store("memory://"), [Policy("hint", quotas="5/day")]) as limiter:
        decision = limiter.check("alice", "hint")

One for all threads. A process that is forked may go on with what its parent has made.
"""

from typing import TYPE_CHECKING, Any

from ratelimit.blocking import InsideEventLoop
from ratelimit.sync.limiter import Limiter
from ratelimit.sync.store import Directory, Store, open_store

if TYPE_CHECKING:
    from ratelimit.sync.usage import UsageLog

__all__ = ["Directory", "InsideEventLoop", "Limiter", "Store", "UsageLog", "open_store"]


def __getattr__(name: str) -> Any:
    """Import the usage log when it is asked for: what is started for a single call may have no use for it."""
    if name != "UsageLog":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ratelimit.sync.usage import UsageLog

    globals()[name] = UsageLog
    return UsageLog
