"""`Follower`: work that follows an answer: in order for each name, bounded, and felt by nobody who does not ask."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

from ratelimit.errors import InvalidInput, RateLimitError, StoreThrottled, StoreUnavailable
from ratelimit.names import Key

MAX_WAITING: Final = 10_000
_LANES: Final = 16
# Far beyond any answer: it only keeps a lane from waiting for ever.
_DEADLINE: Final = 5.0
_GRACE: Final = 10.0
_MOST_SHOWN: Final = 100
_PER_LINE: Final = 1000

Work: TypeAlias = Callable[[], Awaitable[object]]
Failure: TypeAlias = Exception | None

logger = logging.getLogger("ratelimit")


class Difference(NamedTuple):
    """A field that the mirror left at another value than the store that decides."""

    key: Key
    field: str
    decided: int
    mirrored: int | None
    """None where the mirror would not take the write at all."""


@dataclass(slots=True)
class MirrorStats:
    """How a mirror keeps up. Each bound that may be hit has a counter that shows it was."""

    written: int = 0
    failed: int = 0
    """Writes that the mirror did not take: it is behind by them."""
    dropped: int = 0
    """Writes that were not even tried, because `MAX_WAITING` others waited, or time was up at the end."""
    different: int = 0
    """Writes after which a field stood elsewhere than in the store that decides. With several processes, two that write
    the same record at the same moment may show here and be equal a moment later: `MirrorStore.compare` tells."""
    waiting: int = 0
    differences: deque[Difference] = field(default_factory=lambda: deque(maxlen=_MOST_SHOWN))
    """The last ones."""


class _Turn(NamedTuple):
    """A place in a lane."""

    work: Work
    over: asyncio.Future[Failure]


class Follower:
    """Belongs to one event loop. What has the same name is done one after the other, in the order in which it came."""

    def __init__(self, *, max_waiting: int = MAX_WAITING, deadline: float = _DEADLINE, grace: float = _GRACE) -> None:
        if max_waiting < 1:
            raise InvalidInput(f"max_waiting must be at least 1, not {max_waiting!r}")
        self.stats = MirrorStats()
        self._max_waiting = max_waiting
        self._deadline = deadline
        self._grace = grace
        self._lanes: list[deque[_Turn]] = [deque() for _ in range(_LANES)]
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def follow(self, name: Hashable, work: Work) -> None:
        """Have it done, later; or never, where too much waits already."""
        self._line_up(name, work)

    async def finish(self, name: Hashable, work: Work) -> None:
        """Have it done, in its turn, and return when it is. Raises what went wrong, as `StoreUnavailable`."""
        turn = self._line_up(name, work)
        if turn is None:
            raise StoreThrottled("the mirror does not keep up: too much waits for it; try again later")
        await asyncio.wait([turn.over])
        if error := turn.over.result():
            raise error

    async def drain(self) -> None:
        """Returns when all that was to be done by now is done; what comes meanwhile is not waited for."""
        if last := [lane[-1].over for lane in self._lanes if lane]:
            await asyncio.wait(last)

    async def stop(self) -> None:
        """As `drain`, but for `grace` seconds at most; what is left then is counted as dropped."""
        try:
            async with asyncio.timeout(self._grace):
                while self._tasks:
                    await asyncio.wait(list(self._tasks.values()))
        except TimeoutError:
            left, tasks = self.stats.waiting, list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for lane in self._lanes:
                for turn in lane:
                    turn.over.set_result(StoreUnavailable("the mirror was closed"))
                lane.clear()
            self._tasks.clear()
            self.stats.waiting = 0
            self._drop(left)

    def _line_up(self, name: Hashable, work: Work) -> _Turn | None:
        """None where too much waits already."""
        if self.stats.waiting >= self._max_waiting:
            self._drop(1)
            return None
        loop, lane = asyncio.get_running_loop(), hash(name) % _LANES
        turn = _Turn(work, loop.create_future())
        self.stats.waiting += 1
        self._lanes[lane].append(turn)
        if lane not in self._tasks:
            self._tasks[lane] = loop.create_task(self._carry(lane))
        return turn

    async def _carry(self, lane: int) -> None:
        turns = self._lanes[lane]
        try:
            while turns:
                failure = await self._do(turns[0].work)
                turns.popleft().over.set_result(failure)
                self.stats.waiting -= 1
        finally:
            self._tasks.pop(lane, None)

    async def _do(self, work: Work) -> Failure:
        try:
            async with asyncio.timeout(self._deadline):
                await work()
        except (RateLimitError, TimeoutError) as error:
            self.stats.failed += 1
            if self.stats.failed % _PER_LINE == 1:
                logger.warning(
                    "the mirror is behind by %d writes: %s", self.stats.failed, str(error) or "no answer in time"
                )
            return StoreUnavailable("the mirror gave no answer in time") if isinstance(error, TimeoutError) else error
        except Exception as error:  # hardly anybody waits for it, and the next write must not be lost to a bug in this
            self.stats.failed += 1
            logger.exception("a bug lost a write to the mirror")
            return error
        self.stats.written += 1
        return None

    def _drop(self, count: int) -> None:
        if self.stats.dropped % _PER_LINE + count >= _PER_LINE or not self.stats.dropped:
            logger.warning("the mirror does not keep up: %d writes were dropped so far", self.stats.dropped + count)
        self.stats.dropped += count
