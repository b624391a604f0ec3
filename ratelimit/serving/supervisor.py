"""`Supervisor`: keeps several workers running on the same sockets, passes orders on, and replaces them in turn."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Final

from ratelimit.errors import ConfigError
from ratelimit.serving.address import Listening
from ratelimit.serving.member import HAND_OVER, LEAVE, RELOAD, Member, Task
from ratelimit.serving.signals import on_signals
from ratelimit.serving.worker import DONE, NOT_STARTED

START_S: Final = 120.0
"""A new worker that does not serve by then is given up."""
_PAUSES_S: Final = (0.0, 1.0, 5.0, 30.0)
_AFTER_GRACE_S: Final = 60.0

logger = logging.getLogger("ratelimit.serving")


class Supervisor:
    """`refresh` reads the configuration, and raises `ConfigError` where it is bad: then no worker hears of it."""

    def __init__(self, task: Task, workers: int, public: Listening, refresh: Callable[[], object]) -> None:
        self._task = task
        self._workers = workers
        self._public = public
        self._refresh = refresh
        self._members: dict[int, Member] = {}
        self._others: set[Member] = set()
        """Those that are to take a place, or have left theirs."""
        self._told = asyncio.Event()
        self._replacing: asyncio.Task[None] | None = None

    async def run(self, announce: Callable[[], None]) -> int:
        """Serve until told to leave; the exit status."""
        on_signals(leave=self._leave, at_once=self._kill, reload=self._reload, replace=self._replace)
        self._members = {place: Member(self._task) for place in range(self._workers)}
        started = all(await asyncio.gather(*(member.started for member in self._members.values())))
        if not started:
            self._told.set()
            return await self._end(NOT_STARTED)
        if not self._told.is_set():
            announce()
        async with asyncio.TaskGroup() as group:
            keeping = [group.create_task(self._keep(place)) for place in self._members]
            await self._told.wait()
            for task in keeping:
                task.cancel()
        if self._replacing is not None:
            self._replacing.cancel()
        return await self._end(DONE)

    def _leave(self) -> None:
        asyncio.get_running_loop().call_later(self._task.leaving.accepts, self._public.close)
        self._told.set()

    def _reload(self) -> None:
        try:
            self._refresh()
        except ConfigError as error:
            logger.error("the configuration is not reloaded, and the last good one holds: %s", error)
            return
        for member in self._members.values():
            member.tell(RELOAD)

    def _replace(self) -> None:
        if self._replacing is None or self._replacing.done():
            self._replacing = asyncio.create_task(self._replace_all())

    def _kill(self) -> None:
        for member in self._all():
            if not member.ended.done():
                member.kill()

    def _all(self) -> Iterable[Member]:
        return (*self._members.values(), *self._others)

    async def _keep(self, place: int) -> None:
        """A worker that ends by itself is replaced; the pauses grow while new ones do not come to serve."""
        failures = 0
        while True:
            member = self._members[place]
            status = await asyncio.shield(member.ended)
            if self._members[place] is not member:
                continue
            failures = 0 if member.started.result() else failures + 1
            logger.error("worker %d ended with status %d; another one takes its place", member.pid, status)
            await asyncio.sleep(_PAUSES_S[min(failures, len(_PAUSES_S) - 1)])
            if self._members[place] is member:
                self._members[place] = Member(self._task)

    async def _replace_all(self) -> None:
        """One after the other, a new one serving before the old one leaves. Ends with the first that does not start."""
        for place in list(self._members):
            new = Member(self._task)
            self._others.add(new)
            try:
                serves = await asyncio.wait_for(asyncio.shield(new.started), START_S)
            except TimeoutError:
                new.kill()
                serves = False
            if not serves:
                self._others.discard(new)
                logger.error("a new worker did not start; the others stay as they are")
                return
            old, self._members[place] = self._members[place], new
            self._others.discard(new)
            await self._retire(old)
        logger.info("all %d workers are replaced", len(self._members))

    async def _retire(self, old: Member) -> None:
        self._others.add(old)
        old.tell(HAND_OVER)
        await self._until_ended([old])
        self._others.discard(old)

    async def _end(self, status: int) -> int:
        members = list(self._all())
        for member in members:
            member.tell(LEAVE)
        await self._until_ended(members)
        return status if all(member.ended.result() == DONE for member in members) else NOT_STARTED

    async def _until_ended(self, members: Iterable[Member]) -> None:
        """For as long as they may take; then they are killed."""
        waiting = {member.ended for member in members}
        leaving = self._task.leaving
        _, late = await asyncio.wait(waiting, timeout=max(leaving.linger, leaving.grace) + _AFTER_GRACE_S)
        if late:
            logger.error("%d workers did not leave in time and are killed", len(late))
            for member in members:
                if not member.ended.done():
                    member.kill()
            await asyncio.wait(waiting)
