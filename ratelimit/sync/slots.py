"""`Slot` and `Reservation`: those of `ratelimit`, for threads. Another thread renews what is held."""

from __future__ import annotations

from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from ratelimit.decision import Decision
from ratelimit.limiter import slots
from ratelimit.sync.twin import twin_of

T = TypeVar("T")


class Run(Protocol):
    """Runs a coroutine to its end."""

    def __call__(self, work: Coroutine[Any, Any, T], /) -> T:
        """Return what it returns."""
        ...


class Slot:
    """One of those that a policy's `10 concurrent` has: `with limiter.slot("alice", "export"):`."""

    def __init__(self, core: slots.Slot, run: Run) -> None:
        self._core = core
        self._run = run

    @property
    def decision(self) -> Decision | None:
        """What was decided; None before it was asked for."""
        return self._core.decision

    @property
    def is_held(self) -> bool:
        """Return whether it is held: not where it was let pass unasked, is given back, or was not renewed in time."""
        return self._core.is_held

    take = twin_of(slots.Slot.take)
    release = twin_of(slots.Slot.release)
    renew = twin_of(slots.Slot.renew)

    def __enter__(self) -> Self:
        self._run(self._core.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._core.__aexit__(kind, error, trace))


class Reservation(Slot):
    """Units that are taken until it is known how many were used: `with limiter.reserve("alice", "tokens", 1200):`."""

    def __init__(self, core: slots.Reservation, run: Run) -> None:
        super().__init__(core, run)
        self._reservation = core

    @property
    def units(self) -> int:
        """So many are reserved."""
        return self._reservation.units

    @property
    def used(self) -> int | None:
        """What it was settled at."""
        return self._reservation.used

    def settle(self, used: int) -> None:
        """Say how many units were used: what is left goes back at the end. Raises what the async one does."""
        self._reservation.settle(used)
