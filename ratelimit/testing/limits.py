"""`Limits`: all limiters of this process as a test wants them, however far inside of an app they are.

They count in memory, from nothing, by a clock that only the test turns; and what was spent can be looked at.
"""

from __future__ import annotations

import gc
from typing import Any, Self, cast

from ratelimit.algorithms.totals import totals_of
from ratelimit.clock import replace_system_clock
from ratelimit.event import UsageEvent
from ratelimit.limiter import Limiter
from ratelimit.limiter.limiter import all_limiters
from ratelimit.policy import Policy
from ratelimit.store import MemoryStore
from ratelimit.store.delegating import layers
from ratelimit.testing import FakeClock
from ratelimit.usage.log import forget_all


class Limits:
    """Isolates what is done within `with Limits() as limits:` from what was done before, and from the time of day.

    `clock` is what every limiter, usage log and directory of this process goes by that was not given another one.
    """

    def __init__(self, clock: FakeClock | None = None) -> None:
        self.clock = clock or FakeClock()

    def __enter__(self) -> Self:
        self.reset_all()
        replace_system_clock(self.clock)
        return self

    def __exit__(self, *_: object) -> None:
        replace_system_clock(None)
        self.reset_all()

    def limiter(self, *policies: Policy, **options: Any) -> Limiter:
        """Return a new limiter in memory, on the clock of the test."""
        return Limiter(MemoryStore(), policies, clock=self.clock, **options)

    def reset_all(self) -> None:
        """Forget all that was spent and logged in this process. Raise `RuntimeError` where that is not in memory."""
        stores = _stores()
        forget_all()
        for store in stores:
            store.clear()
        for limiter in all_limiters():
            limiter._forget()

    @property
    def spent(self) -> dict[tuple[str, str], int]:
        """Return the units that were spent by now, by user and action: `{("alice", "hint"): 5}`."""
        found: dict[tuple[str, str], int] = {}
        for store in _stores():
            for key, record in store.records.items():
                if units := sum(totals_of(record).values()):
                    found[key] = found.get((key.user, key.action), 0) + units
        return {(user, action): units for (user, action), units in found.items()}

    @property
    def events(self) -> list[UsageEvent]:
        """Return the usage events that were written by now. `await usage.flush()` has those written that wait."""
        return [event for store in _stores() for event in store.events]


def _stores() -> list[MemoryStore]:
    """Return each store in which a limiter counts. Raise `RuntimeError` where one is not in memory."""
    if any(not isinstance(store, MemoryStore) for store in _innermost()):
        gc.collect()  # which may have been of a test before
    stores = _innermost()
    for store in stores:
        if not isinstance(store, MemoryStore):
            raise RuntimeError(
                f"a limiter of this process counts in a {type(store).__name__}, which a test must not empty; set "
                "RATELIMIT_STORE=memory:// before the app is imported (in conftest.py), or configure(store='memory://')"
            )
    return cast(list[MemoryStore], stores)


def _innermost() -> list[object]:
    found: dict[int, object] = {}
    for limiter in all_limiters():
        *_, store = layers(limiter.store)
        found[id(store)] = store
    return list(found.values())
