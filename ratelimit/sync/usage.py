"""`UsageLog`: the one of `ratelimit`, at work in a daemon thread, for the threads that record."""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401 (what it registers for the end has to come first)
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Coroutine, Iterable, Mapping
from concurrent.futures import CancelledError, Future, wait
from dataclasses import replace
from datetime import datetime
from typing import Any, Final, Self, TypeVar, Unpack
from weakref import WeakSet

from ratelimit.blocking import refuse_event_loop
from ratelimit.clock import Clock, SystemClock
from ratelimit.errors import InvalidInput, StoreUnavailable
from ratelimit.event import UsageEvent
from ratelimit.names import UserId
from ratelimit.store import MemoryStore
from ratelimit.sync.store import Store, store_of, twin_of
from ratelimit.tasks import Tasks
from ratelimit.usage import log
from ratelimit.usage.settings import UsageOptions, UsageSettings, UsageStats

T = TypeVar("T")

# While events come, they are taken over so often, and to record one wakes nobody.
_LOOK_S: Final = 0.05
_FOREVER_S: Final = 86_400.0

logger = logging.getLogger("ratelimit")


class _LogCore(log.UsageLog):
    """The log in the thread's event loop, and what was recorded and not yet taken over there."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.inbox: deque[UsageEvent] = deque()
        self.is_awake = False
        self._kept_late = Tasks("keeping a usage event")

    @property
    def room(self) -> int:
        """Return how many more may be recorded before somebody has to wait."""
        room = self.settings.max_queue if self._pipeline is None else self._pipeline.room
        return room - len(self.inbox)

    def take(self) -> None:
        """Take over what was recorded, and look again soon where that was something."""
        if self._take_all():
            asyncio.get_running_loop().call_later(_LOOK_S, self.take)
            return
        self.is_awake = False
        if self.inbox:  # recorded just now, by somebody who thought that this was awake
            self.is_awake = True
            asyncio.get_running_loop().call_soon(self.take)

    async def keep(self, event: UsageEvent) -> bool:
        """Keep an event, and wait where that takes its time. Return False where it was lost."""
        self._take_all()
        waiting = self._enqueue(event)
        return waiting is None or await waiting

    async def after_inbox(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what the work does, once all that was recorded before is taken over."""
        self._take_all()
        return await work

    async def finish(self, store: Any) -> None:
        """Close the log, and its store."""
        self._take_all()
        await self._kept_late.drain()
        await self.close()
        await store.close()

    def _forget(self) -> None:
        """Leave that to the log whose thread this is in."""

    def _take_all(self) -> bool:
        took = False
        while self.inbox:
            took = True
            waiting = self._enqueue(self.inbox.popleft())
            if waiting is not None:
                self._kept_late.add(asyncio.ensure_future(waiting))
        return took


class _LoopThread:
    """A daemon thread with an event loop."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop
        self._begun, self._ended = threading.Event(), threading.Event()
        gevent: Any = sys.modules.get("gevent.monkey")
        if gevent is not None and gevent.is_module_patched("threading"):
            # A thread in truth: as a greenlet, its event loop would seem to run in every other one of the thread's.
            gevent.get_original("_thread", "start_new_thread")(self._run, ())
        else:
            threading.Thread(target=self._run, name="ratelimit: usage log", daemon=True).start()
        self._begun.wait(_FOREVER_S)

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Have the coroutine run there. It is cancelled where the thread ends first."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._ended.wait(_FOREVER_S)

    def _run(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.call_soon(self._begun.set)
        try:
            self.loop.run_forever()
        finally:
            self.loop.run_until_complete(self._end())
            self.loop.close()
            self._ended.set()

    async def _end(self) -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self.loop.shutdown_asyncgens()
        await self.loop.shutdown_default_executor()


def _result(doing: Future[T]) -> T:
    """Return what is done in the thread. gevent takes a wait without any end for one that nobody will ever end."""
    wait([doing], _FOREVER_S)
    return doing.result()


class UsageLog:
    """The usage log on a limiter's own store, as `ratelimit.UsageLog`, whose arguments and methods it has.

    One per process, for all of its threads. A daemon thread, started with the first event, writes to the table by
    connections of its own. `close` waits for it, and so does the end of the interpreter: `grace` seconds at most. A
    forked process has a log of its own, and leaves to its parent what that has not written yet.
    """

    def __init__(
        self,
        store: Store | MemoryStore,
        *,
        actions: Iterable[str] = (),
        clock: Clock | None = None,
        **options: Unpack[UsageOptions],
    ) -> None:
        self._on = store_of(store)
        self._clock = clock or SystemClock()
        self._options = options
        self._is_closed = False
        self._begin(actions)
        _logs.add(self)
        log.unwritten.add(self)

    def _begin(self, actions: Iterable[str]) -> None:
        self._lock = threading.RLock()
        self._thread: _LoopThread | None = None
        self._store = self._on.on_a_loop()
        self._core = _LogCore(self._store, actions=actions, clock=self._clock, **self._options)
        self._is_journaled = self._core.settings.kept_by == "journal"

    @property
    def settings(self) -> UsageSettings:
        """How the log keeps what it accepted."""
        return self._core.settings

    @property
    def stats(self) -> UsageStats:
        """Return how the log stands now; a copy."""
        stats, waiting = self._core.stats, len(self._core.inbox)
        return replace(stats, accepted=stats.accepted + waiting, depth=stats.depth + waiting)

    @property
    def attended(self) -> bool:
        """Return whether somebody is expected to close it; False only where that was said when it was opened."""
        return self._core.attended

    @property
    def actions(self) -> tuple[str, ...]:
        """Return the actions that totals are read for: those named at the start, and those that were kept since."""
        return self._core.actions

    def open(self, *, attended: bool = True) -> None:
        """Begin, and look for what earlier processes left in the journal. Raise `ConfigError` for a bad directory."""
        refuse_event_loop("UsageLog")
        with self._lock:
            self._is_closed = False
            _result(self._started().submit(self._core.open(attended=attended)))

    def close(self) -> None:
        """Write what waits, for at most `grace` seconds. What is left then stays in the journal, or is counted.

        A second call returns when the first one has ended. What is recorded afterwards is refused.
        """
        refuse_event_loop("UsageLog")
        self._is_closed = True
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is not None:
                _result(thread.submit(self._core.finish(self._store)))
                thread.stop()
            _at_work.discard(self)

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def record(
        self,
        user: UserId,
        action: str,
        *,
        cost: int = 1,
        resource: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        id: str | None = None,
        at: datetime | None = None,
        allowed: bool = True,
        status: int | None = None,
        duration: float | None = None,
        request_id: str | None = None,
    ) -> str:
        """Keep an event, and return its id. With `durability="journal"` it is on the disk when this returns.

        Raises what the async one does.
        """
        refuse_event_loop("UsageLog")
        event = UsageEvent.of(
            user, action, now=self._clock.now(), id=id, at=at, cost=cost, allowed=allowed, status=status,
            duration=duration, resource=resource, request_id=request_id, metadata=metadata,
        )  # fmt: skip
        if not self._keep(event) and self.settings.full != "drop":
            raise StoreUnavailable("the usage log did not keep the event: it is closed, or was full for too long")
        return event.id

    def _accept(
        self,
        user: str,
        action: str,
        *,
        cost: int = 1,
        allowed: bool = True,
        status: int | None = None,
        duration: float | None = None,
        resource: str | None = None,
        request_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        at_us: int | None = None,
    ) -> None:
        """Keep the event of a decision of ours, and wait only where it is to be on the disk, or there is no room.

        Raise nothing, also for an event that `record` would refuse. What is lost is counted.
        """
        at_ms = max(0, self._clock.now() if at_us is None else at_us) // 1000
        try:
            draft = (user, action, at_ms, cost, allowed, status, duration, resource, request_id)
            event = UsageEvent.of_decision(draft, metadata)
        except InvalidInput as error:
            logger.warning("a usage event cannot be kept: %s", error)
            self._core.count_drop("the usage log is given bad events")
            return
        self._keep(event)

    flush = twin_of(log.UsageLog.flush)
    events = twin_of(log.UsageLog.events)
    timeline = twin_of(log.UsageLog.timeline)
    totals = twin_of(log.UsageLog.totals)
    summary = twin_of(log.UsageLog.summary)
    reconcile = twin_of(log.UsageLog.reconcile)
    top = twin_of(log.UsageLog.top)
    erase = twin_of(log.UsageLog.erase)

    def _keep(self, event: UsageEvent) -> bool:
        core = self._core
        with self._lock:
            if self._is_closed:
                core.count_drop("the usage log is closed")
                return False
            thread = self._started()
            if not self._is_journaled and core.room > 0:
                core.inbox.append(event)
                if not core.is_awake:
                    core.is_awake = True
                    thread.loop.call_soon_threadsafe(core.take)
                return True
            keeping = thread.submit(core.keep(event))
        try:
            return _result(keeping)
        except CancelledError:
            core.count_drop("the usage log was closed")
            return False

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what the coroutine does in the thread; in one of its own, where the log is closed."""
        refuse_event_loop("UsageLog", work)
        with self._lock:
            if not self._is_closed:
                doing = self._started().submit(self._core.after_inbox(work))
                own = None
            else:
                own = _LoopThread()
                doing = own.submit(work)
        try:
            return _result(doing)
        except CancelledError:
            raise StoreUnavailable("the usage log was closed meanwhile") from None
        finally:
            if own is not None:
                _result(own.submit(self._store.close()))
                own.stop()

    def _forget(self) -> None:
        """Have written what is not yet, so that it can be forgotten with the rest: for tests."""
        with self._lock:
            if self._thread is not None:
                _result(self._thread.submit(self._core.after_inbox(self._core.flush())))

    def _started(self) -> _LoopThread:
        if self._thread is None:
            self._thread = _LoopThread()
            _at_work.add(self)
        return self._thread

    def _forked(self) -> None:
        if self._thread is not None:
            # Never collected: to take its event loop down would take the parent's down, which shares its selector.
            _parents.append((self._thread, self._core, self._store))
            self._begin(self._core.actions)
        self._lock = threading.RLock()


_logs: Final[WeakSet[UsageLog]] = WeakSet()
_at_work: Final[set[UsageLog]] = set()
"""Those whose thread runs, which nobody may forget before all is written."""
_parents: Final[list[object]] = []


def _close_all() -> None:
    for one in list(_at_work):
        one.close()


def _in_child() -> None:
    _at_work.clear()
    for one in list(_logs):
        one._forked()


# While threads may still be started, which writing takes: `atexit` comes too late for that. What is registered last is
# called first: before what stops all executors, which was registered by its import above.
threading._register_atexit(_close_all)  # type: ignore[attr-defined]
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
