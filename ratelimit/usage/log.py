"""`UsageLog`: takes events over in microseconds, and has them written once each, however long the store needs."""

from __future__ import annotations

import asyncio
import logging
import random as _random
from collections.abc import Awaitable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Self, Unpack

from ratelimit.clock import Clock, SystemClock
from ratelimit.errors import ConfigError, InvalidInput, StoreUnavailable
from ratelimit.event import UsageEvent
from ratelimit.names import UserId
from ratelimit.store.base import TableStore
from ratelimit.usage.erasing import Erased, Erasures, spellings
from ratelimit.usage.options import Options, Settings, UsageStats
from ratelimit.usage.pipeline import Pump
from ratelimit.usage.reports import Reports
from ratelimit.usage.writer import Random, Sleep

logger = logging.getLogger("ratelimit")

_DROPS_PER_LINE: Final = 1000
# Room may also come from the disk, of which nobody tells.
_LOOK_AGAIN: Final = 0.05


class UsageLog(Reports):
    """The usage log on a limiter's own store, which it neither opens nor closes. One per process and event loop.

    `actions` are those that the counters are read for: pass `limiter.policies`. The other settings are explained in
    `ratelimit.usage.options.Settings`. Use it as an async context manager inside of the store's, or of the limiter's.
    """

    def __init__(
        self,
        store: TableStore,
        *,
        actions: Iterable[str] = (),
        clock: Clock | None = None,
        sleep: Sleep = asyncio.sleep,
        random: Random = _random.random,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(store, actions, clock or SystemClock())
        self.settings = Settings(**options)
        self._stats = UsageStats()
        self._sleep = sleep
        self._random = random
        self._journals = self.settings.durability == "journal"
        self._pump: Pump | None = None
        self._stopping: Pump | None = None
        self._closed = False
        self._attended: bool | None = None
        self._has_followed = False

    @property
    def stats(self) -> UsageStats:
        """How the log stands now; a copy."""
        pump = self._pump
        if pump is None:
            return replace(self._stats)
        return replace(
            self._stats,
            depth=pump.writer.depth,
            in_flight=pump.writer.underway,
            journal_bytes=0 if pump.journal is None else pump.journal.holdings.bytes,
        )

    @property
    def attended(self) -> bool:
        """Whether somebody is expected to close it; False only where that was said when it was opened."""
        return self._attended is not False

    async def open(self, *, attended: bool = True) -> None:
        """Begin, and look for what earlier processes left in the journal. Raises `ConfigError` for a bad directory.

        Where nobody will say that the process ends, it is not `attended`: then what surfaces await is that an event is
        in the table, at most `max_wait` seconds; with a journal, on the disk, as ever. One that is open stays as it is.
        """
        self._attended = attended or self._attended is True
        self._closed = False
        try:
            await (self._here(self._pump) or self._start()).open()
        except OSError as error:
            await self.close()
            raise ConfigError("journal_dir", f"cannot be used: {error}") from error

    async def close(self) -> None:
        """Write what waits, for at most `grace` seconds. What is left then stays in the journal, or is counted.

        Cancelling it ends the waiting, and nothing else. A second call returns when the first one has ended.
        """
        self._closed = True
        self._attended = None
        if self._pump is not None:
            self._stopping, self._pump = self._here(self._pump), None
        stopping = self._stopping
        if stopping is not None:
            await stopping.stop(self.settings.grace)
            if self._stopping is stopping:
                self._stopping = None

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
        """Keep an event; its id. With `durability="journal"` it is on the disk when this returns.

        The same `id` of the same user is the same event, however often it is recorded. `at` is an aware `datetime`;
        by default now, or the time in an `id` that is a UUIDv7. Raises `InvalidEvent`, `InvalidUser`,
        `InvalidAction`, and `StoreUnavailable` where it was not kept: the log is closed, or full for too long.
        """
        event = UsageEvent.of(
            user, action, now=self.clock.now(), id=id, at=at, cost=cost, allowed=allowed, status=status,
            duration=duration, resource=resource, request_id=request_id, metadata=metadata,
        )  # fmt: skip
        waiting = self.take(event)
        if waiting is not None and not await waiting and self.settings.full != "drop":
            raise StoreUnavailable("the usage log did not keep the event: it is closed, or was full for too long")
        return event.id

    def accept(
        self,
        user: UserId,
        action: str,
        *,
        cost: int = 1,
        allowed: bool = True,
        status: int | None = None,
        duration: float | None = None,
        resource: str | None = None,
        request_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        at: int | None = None,
    ) -> Awaitable[bool] | None:
        """For surfaces: keep an event, without waiting. `at`, in milliseconds, is a moment of theirs, and is trusted,
        even if the clock was set since.

        None where there is nothing to wait for. Else what to await before the answer is complete: until the event is
        on the disk, or there was room; False where it was lost, which is counted. Raises nothing, also for an event
        that `record` would refuse: it is not to break an answer.
        """
        now = self.clock.now() if at is None else at * 1000
        try:
            event = UsageEvent.of(
                user, action, now=now, at_ms=at, cost=cost, allowed=allowed, status=status,
                duration=duration, resource=resource, request_id=request_id, metadata=metadata,
            )  # fmt: skip
        except InvalidInput as error:
            logger.warning("a usage event cannot be kept: %s", error)
            return self._drop("the usage log is given bad events")
        return self.take(event)

    def take(self, event: UsageEvent) -> Awaitable[bool] | None:
        """`accept`, for an event that was made with `UsageEvent.of`."""
        self.seen(event.action)
        pump = self._pump or (None if self._closed else self._start())
        if pump is None:
            return self._drop()
        if pump.loop is not asyncio.get_running_loop():
            try:
                pump = self._follow(pump)
            except StoreUnavailable as error:
                return self._drop(str(error))
        if pump.room <= 0:
            return self._take_though_full(pump, event)
        self._stats.accepted += 1
        if self._journals and pump.journal is not None:
            return pump.journal.append(event, spill=False)
        pump.writer.add(event)
        return self._written(pump) if self._attended is False and not pump.writer.is_failing else None

    async def flush(self) -> None:
        """Returns when all that was accepted so far is in the table; how long the store needs, it waits.

        That includes what was found in the journal. Raises `StoreUnavailable` when the log is closed meanwhile.
        """
        if (pump := self._here(self._pump)) is not None:
            await pump.flush()

    async def erase(self, user: UserId, *, actions: Iterable[str] = (), quick: bool = False) -> Erased:
        """See `Reports.erase`. Where there is a journal, also what dead processes left of the user in it.

        Raises `ConfigError` for a journal that cannot be used.
        """
        directory = self.settings.directory
        if directory is None:
            return await super().erase(user, actions=actions, quick=quick)
        names, before, was_closed = spellings(user), self._stats.erased, self._closed
        try:
            # First of all, so that none of it is written once more.
            await asyncio.to_thread(Erasures(directory).add, names, at=self.clock.now() // 1000)
            pump = self._here(self._pump) or self._start()
            await pump.open()
            assert pump.journal is not None
            await pump.journal.adopt()
            erased = await super().erase(user, actions=actions, quick=quick)
            await pump.journal.roll()
            left = await pump.journal.damaged_files_of(names)
        except OSError as error:
            raise ConfigError("journal_dir", f"cannot be used: {error}") from error
        finally:
            if was_closed:
                await self.close()
        return Erased.of({**erased.found, "journal": self._stats.erased - before}, left)

    def _progress(self) -> int:
        passed = 0 if self._pump is None or self._pump.journal is None else self._pump.journal.backlog.passed
        return self._stats.written + passed

    def _here(self, pump: Pump | None) -> Pump | None:
        """What runs, in the event loop that runs now. Raises `StoreUnavailable` where it is at work in another one."""
        return pump if pump is None or pump.loop is asyncio.get_running_loop() else self._follow(pump)

    def _follow(self, pump: Pump) -> Pump:
        """Go on in this event loop, with what the former one has left."""
        left = pump.abandon()
        if not self._has_followed:
            self._has_followed = True
            logger.warning("the usage log goes on in another event loop, with %d events of the former one", len(left))
        pump = self._start()
        for event in left:
            pump.writer.add(event)
        return pump

    def _start(self) -> Pump:
        self._pump = Pump(self.store.events, self.settings, self._stats, self.clock, self._sleep, self._random)
        return self._pump

    def _take_though_full(self, pump: Pump, event: UsageEvent) -> Awaitable[bool]:
        full = self.settings.full
        if full == "spill" and pump.journal is not None and not pump.journal.full:
            self._stats.accepted += 1
            return pump.journal.append(event, spill=True)
        if full == "wait":
            return asyncio.get_running_loop().create_task(self._take_when_there_is_room(pump, event))
        return self._drop()

    def _written(self, pump: Pump) -> Awaitable[bool]:
        return asyncio.get_running_loop().create_task(self._wait_until_written(pump))

    async def _wait_until_written(self, pump: Pump) -> bool:
        """It is kept in any case, in memory."""
        with suppress(TimeoutError, StoreUnavailable):
            async with asyncio.timeout(self.settings.max_wait):
                await pump.writer.flush(patient=False)
        return True

    async def _take_when_there_is_room(self, pump: Pump, event: UsageEvent) -> bool:
        try:
            async with asyncio.timeout(self.settings.max_wait):
                while pump.room <= 0:
                    await pump.writer.changed(or_after=_LOOK_AGAIN)
        except TimeoutError:
            return await self._drop()
        waiting = self.take(event)
        return waiting is None or await waiting

    def _drop(self, why: str = "the usage log is full") -> asyncio.Future[bool]:
        self._stats.dropped += 1
        if self._stats.dropped % _DROPS_PER_LINE == 1:
            why = "the usage log is closed" if self._closed else why
            logger.warning("%s: %d events were dropped so far", why, self._stats.dropped)
        dropped: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        dropped.set_result(False)
        return dropped
