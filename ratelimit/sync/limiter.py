"""`Limiter`: the one of `ratelimit`, run without an event loop by the threads that ask it; and what it hands out."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from datetime import datetime
from functools import partial
from inspect import isawaitable, iscoroutine
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from ratelimit.blocking import Deferred, Runner, refuse_event_loop, running_loop
from ratelimit.blocking_wait import wait_for
from ratelimit.breaker import BreakerState
from ratelimit.clock import Clock
from ratelimit.decision import Decision
from ratelimit.errors import ConfigError
from ratelimit.limiter import limiter, slots
from ratelimit.limiter.background import Alert, AlertHook, LimiterStats
from ratelimit.limiter.checker import Observer
from ratelimit.limiter.deadline import BlockingCircuit
from ratelimit.limiter.limiter import DEFAULT_DEADLINE, DEFAULT_DENIAL_CACHE, DEFAULT_MAX_BELIEFS
from ratelimit.names import UserId
from ratelimit.policy import AlgorithmName, Policy, QuotaSource
from ratelimit.quota import QuotasLike
from ratelimit.store import MemoryStore
from ratelimit.sync.store import Directory, Store, store_of, twin_of

T = TypeVar("T")


class _LimiterCore(limiter.Limiter):
    """What decides, without an event loop."""

    def __init__(self, store: Store, *args: Any, on_alert: AlertHook | None, **options: Any) -> None:
        self._runner = store.runner
        super().__init__(store.inner, *args, on_alert=None if on_alert is None else _aside(on_alert), **options)

    def _circuit(self, deadline: float) -> BlockingCircuit:
        return BlockingCircuit(self.clock, deadline, self.breaker)

    def _tasks(self, what: str, limit: int | None = None) -> Deferred:
        return Deferred(self._runner)

    def _aside(self) -> Callable[[Coroutine[Any, Any, None]], object]:
        return partial(self._runner.start, what="slots")


def _aside(hook: AlertHook) -> AlertHook:
    """Return the hook, called while other threads may go on."""

    async def call(alert: Alert) -> None:
        answer = wait_for(lambda left: hook(alert))
        if isawaitable(answer):
            if iscoroutine(answer):
                answer.close()
            raise TypeError("on_alert is async: nobody awaits it here; use `from ratelimit import Limiter`")

    return call


class Limiter:
    """Checks users' actions against policies, as `ratelimit.Limiter` does, whose arguments and methods it has.

    One per process, for all of its threads: nobody else is held up while one of them waits for the store. Where there
    is no limit, a check waits until it is counted. `on_alert` is called by the thread whose check was the reason,
    before that returns.
    """

    def __init__(
        self,
        store: Store | MemoryStore,
        policies: Iterable[Policy] = (),
        *,
        clock: Clock | None = None,
        deadline: float = DEFAULT_DEADLINE,
        denial_cache: float = DEFAULT_DENIAL_CACHE,
        max_beliefs: int = DEFAULT_MAX_BELIEFS,
        directory: Directory | None = None,
        on_alert: AlertHook | None = None,
        enabled: bool = True,
    ) -> None:
        self.store = store_of(store)
        self.directory = directory
        self._runner = self.store.runner
        self._core = _LimiterCore(
            self.store,
            policies,
            clock=clock,
            deadline=deadline,
            denial_cache=denial_cache,
            max_beliefs=max_beliefs,
            directory=_source(directory, self._runner),
            on_alert=on_alert,
            enabled=enabled,
        )

    @property
    def policies(self) -> Mapping[str, Policy]:
        """The named rules, by name."""
        return self._core.policies

    @property
    def clock(self) -> Clock:
        """What tells the time."""
        return self._core.clock

    @property
    def breaker(self) -> BreakerState:
        """The state of the circuit breaker around the store."""
        return self._core.breaker

    @property
    def stats(self) -> LimiterStats:
        """What was spared and lost."""
        return self._core.stats

    @property
    def observer(self) -> Observer | None:
        """Told of each decision of a check, and its seconds, before it is returned: has to be quick, must not raise."""
        return self._core.observer

    @observer.setter
    def observer(self, observer: Observer | None) -> None:
        self._core.observer = observer

    open = twin_of(limiter.Limiter.open)
    drain = twin_of(limiter.Limiter.drain)
    close = twin_of(limiter.Limiter.close)

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check(
        self,
        user: UserId,
        action: str,
        *,
        cost: int = 1,
        quotas: QuotasLike | None = None,
        algorithm: AlgorithmName | None = None,
    ) -> Decision:
        """Spend `cost` units if every quota has room, or nothing at all. Where there is no limit, allowed.

        Raises what the async one does, and `InsideEventLoop` in a thread that runs an event loop.
        """
        if running_loop() is not None:
            refuse_event_loop("Limiter")
        runner = self._runner
        with runner.lock:
            answer = self._core._begin(user, action, cost, quotas, algorithm)
            decision = answer if isinstance(answer, Decision) else runner.run_on(answer)
        if runner.later:
            runner.run_later()
        return decision

    wait = twin_of(limiter.Limiter.wait)
    check_all = twin_of(limiter.Limiter.check_all)
    peek = twin_of(limiter.Limiter.peek)
    charge = twin_of(limiter.Limiter.charge)
    reset = twin_of(limiter.Limiter.reset)
    totals = twin_of(limiter.Limiter.totals)

    @overload
    def refund(self, user: Decision, *, cost: int | None = None) -> None: ...

    @overload
    def refund(
        self,
        user: UserId,
        action: str,
        cost: int = 1,
        *,
        at: datetime | None = None,
        quotas: QuotasLike | None = None,
        algorithm: AlgorithmName | None = None,
    ) -> None: ...

    def refund(self, user: Decision | UserId, *args: Any, **options: Any) -> None:
        """Give back what a decision took, or `cost` units of it: once, and nothing where it took nothing.

        Raises what the async one does.
        """
        self._run(self._core.refund(user, *args, **options))

    def slot(
        self,
        user: UserId,
        action: str,
        *,
        cost: int = 1,
        quotas: QuotasLike | None = None,
        algorithm: AlgorithmName | None = None,
        timeout: float | None = None,
    ) -> Slot:
        """Return one of the slots of a policy such as `10 concurrent`, to be taken with `with`. Raises as `check`."""
        core = self._core.slot(user, action, cost=cost, quotas=quotas, algorithm=algorithm, timeout=timeout)
        return Slot(core, self._runner)

    def reserve(
        self,
        user: UserId,
        action: str,
        cost: int,
        *,
        quotas: QuotasLike | None = None,
        algorithm: AlgorithmName | None = None,
        timeout: float | None = None,
    ) -> Reservation:
        """Return a reservation of `cost` units, to be taken with `with`, and settled at what was used of them.

        Raises as `check` does.
        """
        core = self._core.reserve(user, action, cost, quotas=quotas, algorithm=algorithm, timeout=timeout)
        return Reservation(core, self._runner)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work, "Limiter")


def _source(directory: Directory | None, runner: Runner) -> QuotaSource | None:
    if directory is None:
        return None
    if not isinstance(directory, Directory):
        raise ConfigError("directory", f"expected a Directory of ratelimit.sync, not {directory!r}")
    if directory._runner is not runner:
        raise ConfigError("directory", "is on another store; make it on this one: Directory(store.directory)")
    return directory._core


class Slot:
    """One of those that a policy's `10 concurrent` has: `with limiter.slot("alice", "export"):`. Another thread renews
    it."""

    def __init__(self, core: slots.Slot, runner: Runner) -> None:
        self._core = core
        self._runner = runner

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

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work, "Limiter")


class Reservation(Slot):
    """Units that are taken until it is known how many were used: `with limiter.reserve("alice", "tokens", 1200):`."""

    def __init__(self, core: slots.Reservation, runner: Runner) -> None:
        super().__init__(core, runner)
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
