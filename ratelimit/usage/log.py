"""`UsageLog`: take events over in microseconds, and have them written once each, however long the store needs."""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401 (what it registers for the end has to come first)
import logging
import os
import threading
from collections.abc import Awaitable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Any, Final, Self, Unpack
from weakref import WeakSet

from ratelimit.clock import Clock, SystemClock
from ratelimit.errors import ConfigError, InvalidInput, StoreUnavailable
from ratelimit.event import MAX_REQUEST_ID_BYTES, MAX_RESOURCE_BYTES, EventDraft, UsageEvent, is_short
from ratelimit.names import UserId
from ratelimit.store.base import TableStore
from ratelimit.usage.pipeline import Pipeline
from ratelimit.usage.reports import Erased, Reports, spellings
from ratelimit.usage.segments import Erasures
from ratelimit.usage.settings import UsageOptions, UsageSettings, UsageStats

logger = logging.getLogger("ratelimit")

_DROPS_PER_WARNING: Final = 1000
# Room may also come from the disk, of which nobody tells.
_ROOM_POLL_S: Final = 0.05


class UsageLog(Reports):
    """The usage log on a limiter's own store, which it neither opens nor closes. One per process and event loop.

    `actions` are those that the counters are read for: pass `limiter.policies`. The other settings are explained in
    `UsageSettings`. Use it as an async context manager inside of the store's, or of the limiter's.
    """

    def __init__(
        self,
        store: TableStore,
        *,
        actions: Iterable[str] = (),
        clock: Clock | None = None,
        **options: Unpack[UsageOptions],
    ) -> None:
        super().__init__(store, actions, clock or SystemClock())
        self.settings = UsageSettings(**options)
        self.timelines = set(self.settings.timelines)
        """The actions that have one, now."""
        self._stats = UsageStats()
        self._is_journaled = self.settings.kept_by == "journal"
        self._pipeline: Pipeline | None = None
        self._stopping: Pipeline | None = None
        self._closed = False
        self._attended: bool | None = None
        self._has_followed = False
        unwritten.add(self)

    @property
    def stats(self) -> UsageStats:
        """Return how the log stands now; a copy."""
        pipeline = self._pipeline
        if pipeline is None:
            return replace(self._stats)
        return replace(
            self._stats,
            depth=len(pipeline.writer.queue),
            in_flight=pipeline.writer.in_flight,
            journal_bytes=0 if pipeline.journal is None else pipeline.journal.refs.bytes,
        )

    @property
    def attended(self) -> bool:
        """Return whether somebody is expected to close it; False only where that was said when it was opened."""
        return self._attended is not False

    async def open(self, *, attended: bool = True) -> None:
        """Begin, and look for what earlier processes left in the journal. Raise `ConfigError` for a bad directory.

        Where nobody will say that the process ends, it is not `attended`: then what surfaces await is that an event is
        in the table, at most `max_wait` seconds; with a journal, on the disk, as ever. One that is open stays as it is.
        """
        self._attended = attended or self._attended is True
        self._closed = False
        try:
            await (self._here(self._pipeline) or self._start()).open()
        except OSError as error:
            await self.close()
            raise ConfigError("journal_dir", f"cannot be used: {error}") from error

    async def close(self) -> None:
        """Write what waits, for at most `grace` seconds. What is left then stays in the journal, or is counted.

        Cancelling it ends the waiting, and nothing else. A second call returns when the first one has ended.
        """
        self._closed = True
        self._attended = None
        if self._pipeline is not None:
            self._stopping, self._pipeline = self._here(self._pipeline), None
        stopping = self._stopping
        if stopping is not None:
            await stopping.stop(self.settings.grace)
            if self._stopping is stopping:
                self._stopping = None
        _at_work.discard(self)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def record(
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

        The same `id` of the same user is the same event, however often it is recorded. `at` is an aware `datetime`;
        by default now, or the time in an `id` that is a UUIDv7. Raise `InvalidEvent`, `InvalidUser`,
        `InvalidAction`, and `StoreUnavailable` where it was not kept: the log is closed, or full for too long.
        """
        event = UsageEvent.of(
            user, action, now=self._clock.now(), id=id, at=at, cost=cost, allowed=allowed, status=status,
            duration=duration, resource=resource, request_id=request_id, metadata=metadata,
        )  # fmt: skip
        waiting = self._enqueue(event)
        if waiting is not None and not await waiting and self.settings.full != "drop":
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
    ) -> Awaitable[bool] | None:
        """Keep the event of a decision of ours, without waiting. `at_us` is trusted, even if the clock was set since.

        Return None where there is nothing to wait for. Else what to await before the answer is complete: until the
        event is on the disk, or there was room; False where it was lost, which is counted. Raise nothing, also for an
        event that `record` would refuse: it is not to break an answer.
        """
        at_ms = max(0, self._clock.now() if at_us is None else at_us) // 1000
        draft = (user, action, at_ms, cost, allowed, status, duration, resource, request_id)
        pipeline = self._pipeline
        if (
            metadata is None
            and pipeline is not None
            and pipeline.journal is None
            and self._attended is not False
            and pipeline.loop is asyncio.get_running_loop()
            and pipeline.room > 0
            and (resource is None or is_short(resource, MAX_RESOURCE_BYTES))
            and (request_id is None or is_short(request_id, MAX_REQUEST_ID_BYTES))
        ):
            if action not in self._actions:
                self.add_action(action)
            self._stats.accepted += 1
            pipeline.writer.add(draft)
            return None
        return self._accept_whole(draft, metadata)

    def _accept_whole(self, draft: EventDraft, metadata: Mapping[str, Any] | None) -> Awaitable[bool] | None:
        try:
            event = UsageEvent.of_decision(draft, metadata)
        except InvalidInput as error:
            logger.warning("a usage event cannot be kept: %s", error)
            return self._drop("the usage log is given bad events")
        return self._enqueue(event)

    def _enqueue(self, event: UsageEvent) -> Awaitable[bool] | None:
        if event.action not in self._actions:
            self.add_action(event.action)
        pipeline = self._pipeline
        if pipeline is None:
            if self._closed:
                return self._drop()
            pipeline = self._start()
        elif pipeline.loop is not asyncio.get_running_loop():
            try:
                pipeline = self._follow(pipeline)
            except StoreUnavailable as error:
                return self._drop(str(error))
        if pipeline.room <= 0:
            return self._enqueue_though_full(pipeline, event)
        self._stats.accepted += 1
        if self._is_journaled and pipeline.journal is not None:
            return pipeline.journal.append(event, spill=False)
        pipeline.writer.add(event)
        if self._attended is False and not pipeline.writer.is_failing:
            return asyncio.get_running_loop().create_task(self._wait_until_written(pipeline))
        return None

    async def flush(self) -> None:
        """Return when all that was accepted so far is in the table; how long the store needs, it waits.

        That includes what was found in the journal. Raise `StoreUnavailable` when the log is closed meanwhile.
        """
        if (pipeline := self._here(self._pipeline)) is not None:
            await pipeline.flush()

    async def settle(self) -> None:
        """Return when what was accepted so far is in the table, or it fails, or after `max_wait` seconds."""
        if (pipeline := self._here(self._pipeline)) is not None:
            await self._wait_until_written(pipeline)

    async def erase(self, user: UserId, *, actions: Iterable[str] = (), quick: bool = False) -> Erased:
        """Erase as `Reports.erase` does, and where there is a journal, what dead processes left of the user in it.

        Raise `ConfigError` for a journal that cannot be used.
        """
        directory = self.settings.directory
        if directory is None:
            return await super().erase(user, actions=actions, quick=quick)
        names, before, was_closed = spellings(user), self._stats.erased, self._closed
        try:
            # First of all, so that none of it is written once more.
            await asyncio.to_thread(Erasures(directory).add, names, at=self._clock.now() // 1000)
            pipeline = self._here(self._pipeline) or self._start()
            await pipeline.open()
            assert pipeline.journal is not None
            await pipeline.journal.replay.adopt()
            erased = await super().erase(user, actions=actions, quick=quick)
            await pipeline.journal.roll()
            left = await pipeline.journal.damaged_files_of(names)
        except OSError as error:
            raise ConfigError("journal_dir", f"cannot be used: {error}") from error
        finally:
            if was_closed:
                await self.close()
        return Erased.of({**erased.found, "journal": self._stats.erased - before}, left)

    def _forget(self) -> None:
        """Forget what is not written yet: for tests."""
        if self._pipeline is not None:
            self._pipeline.writer.forget()

    def _progress(self) -> int:
        journal = None if self._pipeline is None else self._pipeline.journal
        passed = 0 if journal is None else journal.replay.passed_bytes
        return self._stats.written + passed

    def _here(self, pipeline: Pipeline | None) -> Pipeline | None:
        """Move what runs to this event loop. Raise `StoreUnavailable` where it is at work in another one."""
        return pipeline if pipeline is None or pipeline.loop is asyncio.get_running_loop() else self._follow(pipeline)

    def _follow(self, pipeline: Pipeline) -> Pipeline:
        """Go on in this event loop, with what the former one has left."""
        left = pipeline.abandon()
        if not self._has_followed:
            self._has_followed = True
            logger.warning("the usage log goes on in another event loop, with %d events of the former one", len(left))
        pipeline = self._start()
        for event in left:
            pipeline.writer.add(event)
        return pipeline

    def _start(self) -> Pipeline:
        self._pipeline = Pipeline(self._store.events, self.settings, self._stats, self._clock, self.timelines)
        _at_work.add(self)
        return self._pipeline

    def _enqueue_though_full(self, pipeline: Pipeline, event: UsageEvent) -> Awaitable[bool]:
        full = self.settings.full
        if full == "spill" and pipeline.journal is not None and not pipeline.journal.is_full:
            self._stats.accepted += 1
            return pipeline.journal.append(event, spill=True)
        if full == "wait":
            return asyncio.get_running_loop().create_task(self._enqueue_when_there_is_room(pipeline, event))
        return self._drop()

    async def _wait_until_written(self, pipeline: Pipeline) -> bool:
        """Return True in any case: it is kept in memory."""
        with suppress(TimeoutError, StoreUnavailable):
            async with asyncio.timeout(self.settings.max_wait):
                await pipeline.writer.flush(until_failing=True)
        return True

    async def _enqueue_when_there_is_room(self, pipeline: Pipeline, event: UsageEvent) -> bool:
        try:
            async with asyncio.timeout(self.settings.max_wait):
                while pipeline.room <= 0:
                    await pipeline.writer.changed(or_after_s=_ROOM_POLL_S)
        except TimeoutError:
            return await self._drop()
        waiting = self._enqueue(event)
        return waiting is None or await waiting

    def count_drop(self, why: str) -> None:
        """Count an event that is lost, and say so once in a while."""
        self._stats.dropped += 1
        if self._stats.dropped % _DROPS_PER_WARNING == 1:
            why = "the usage log is closed" if self._closed else why
            logger.warning("%s: %d events were dropped so far", why, self._stats.dropped)

    def _drop(self, why: str = "the usage log is full") -> asyncio.Future[bool]:
        self.count_drop(why)
        dropped: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        dropped.set_result(False)
        return dropped


_at_work: Final[set[UsageLog]] = set()
"""Those that nobody has closed yet, and nobody may forget before all is written."""


def _close_all() -> None:
    """Write what those still have whose event loop has ended without them."""
    for one in list(_at_work):
        pipeline = one._pipeline
        if pipeline is not None and not pipeline.is_idle and not pipeline.loop.is_running():
            asyncio.run(one.close())


# While threads may still be started, which asking for an address takes: `atexit` comes too late for that.
threading._register_atexit(_close_all)  # type: ignore[attr-defined]
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_at_work.clear)


unwritten: Final[WeakSet[Any]] = WeakSet()
"""All logs of this process."""


def forget_all() -> None:
    """Have nothing left to be written: for tests, which empty the store then."""
    for one in list(unwritten):
        one._forget()
