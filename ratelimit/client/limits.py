"""`OriginLimits`: what is known of the limits of others, and whose turn it is to send something.

Of each quota it keeps how much can be sent for certain. An answer says what remained when its request was counted;
what was under way at that time, or was sent since, may have been counted after it, and is taken off. So nothing is sent
that would be refused, as long as nobody else spends of the same quota, in whatever order answers arrive.

Who has to wait stands in a queue (`limiter/waiting.py`), whose first asks here.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Final
from weakref import WeakValueDictionary

from ratelimit.blocking import Deferred, Signal
from ratelimit.cache import LRUCache
from ratelimit.client import fields
from ratelimit.clock import SECOND, Clock, seconds
from ratelimit.decision import Decision
from ratelimit.errors import LimiterClosed, QuotaExceeded, RateLimitError
from ratelimit.limiter.waiting import WaitQueues
from ratelimit.retry import Backoff
from ratelimit.tasks import Tasks

MAX_GROUPS: Final = 1024
"""Origins, or what else requests are told apart by, of which is known what they allow."""
MAX_WAIT_S: Final = 86_400.0
"""Seconds for which an answer is believed that says to wait: then one request finds out. A server that means
milliseconds, or says something absurd, keeps nobody out for ever."""
_UNSAID: Final = Backoff(first_s=0.5, max_s=60.0)
"""How long to wait after a refusal that does not say it."""


class WaitTooLong(RateLimitError, TimeoutError):
    """A request was not sent, as it would have been refused for longer than it may wait. `retry_after` says how long,
    in seconds: at least so long where others are in front of it; None where no answer has told yet."""

    def __init__(self, origin: str, retry_after: float | None) -> None:
        self.retry_after = retry_after
        if retry_after:
            why = f"it would have to wait for at least {retry_after:.6g} seconds, which is longer than it may"
        else:
            why = "its time was over before it had its turn"
        super().__init__(f"not sent to {origin}: {why}")


class _Traffic:
    """How many requests were sent, and are under way."""

    __slots__ = ("in_flight", "sent")

    def __init__(self) -> None:
        self.sent = 0
        self.in_flight = 0

    def begin(self) -> int:
        """Take note of one that is sent. Return by what `overlapping` knows it."""
        self.sent += 1
        self.in_flight += 1
        return self.sent - self.in_flight

    def overlapping(self, mark: int) -> int:
        """Return how many others were under way at the same time as one whose answer has come."""
        return self.sent - mark - 1


class _QuotaEstimate(_Traffic):
    """How much can be sent of one quota. Where it is not known, after a reset too, one request finds out."""

    __slots__ = ("__weakref__", "available", "reset_at", "waiting")

    def __init__(self) -> None:
        super().__init__()
        self.available = 1
        self.reset_at: int | None = None
        """When there will be more; None where an answer has to say so."""
        self.waiting: set[_Group] = set()
        """Whom to tell of any change."""

    def room_at(self, now: int) -> int | None:
        """Return when there is room, which may be now; None where the answers under way have to say so."""
        if self.reset_at is not None and self.reset_at <= now:
            self.reset_at = None
        if self.available <= 0 and self.reset_at is None and not self.in_flight:
            self.available = 1
        return now if self.available > 0 else self.reset_at

    def learn(self, told: fields.ServerQuota, overlapping: int | None, now: int) -> None:
        """Take note of an answer. `overlapping` requests may have been counted after its own; None is any number."""
        if overlapping is not None:
            self.available = max(self.available, told.remaining - overlapping)
        self.available = min(self.available, told.remaining)
        self.close_for(told.reset_s, now)

    def close_for(self, wait_s: float, now: int) -> None:
        """Let nothing more be sent for so long than there is room for now."""
        self.reset_at = max(self.reset_at or 0, now + round(min(wait_s, MAX_WAIT_S) * SECOND))


class _Group(_Traffic):
    """Requests that are limited together."""

    def __init__(self, origin: str) -> None:
        super().__init__()
        self.origin = origin
        self.finding_out: _QuotaEstimate | None = _QuotaEstimate()
        """Lets one request find out, at first and after a refusal, where others would only be refused with it."""
        self.quotas: LRUCache[Hashable, _QuotaEstimate] = LRUCache(fields.MAX_ITEMS)
        self.refusals = 0
        """One after the other."""
        self.news = Signal()
        """Set when what an answer under way had to say is known."""

    def room_at(self, now: int) -> int | None:
        """Return when all quotas have room; None where the answers under way have to say so."""
        latest, is_known = now, True
        for quota in self.known():
            room_at = quota.room_at(now)
            if room_at != now:
                quota.waiting.add(self)
            is_known = is_known and room_at is not None
            latest = max(latest, room_at or now)
        return latest if is_known or latest > now else None

    def known(self) -> Iterator[_QuotaEstimate]:
        if self.finding_out is not None:
            yield self.finding_out
        for key in list(self.quotas):
            if (quota := self.quotas.peek(key)) is not None:
                yield quota


class Permit:
    """What a request has taken that may be sent."""

    def __init__(self, group: _Group) -> None:
        self.group = group
        self.mark = group.begin()
        self.marks = {quota: quota.begin() for quota in group.known()}
        for quota in self.marks:
            quota.available -= 1

    def end(self) -> None:
        for one in (self.group, *self.marks):
            one.in_flight -= 1

    def cancel(self) -> None:
        for one in (self.group, *self.marks):
            one.sent -= 1
        for quota in self.marks:
            quota.available += 1


class OriginLimits:
    """What is known of all origins that one transport sends to."""

    def __init__(self, clock: Clock, tasks: Tasks | Deferred) -> None:
        self._clock = clock
        self._queues = WaitQueues(clock, tasks)
        self._groups: LRUCache[Hashable, _Group] = LRUCache(MAX_GROUPS)
        self._shared: WeakValueDictionary[tuple[str, str, str], _QuotaEstimate] = WeakValueDictionary()
        """Those that the server tells whose they are: of one origin, whatever groups its requests are in."""

    async def admit(self, origin: str, key: Hashable, due: int) -> Permit:
        """Return when a request may be sent. Raises `WaitTooLong` as soon as that cannot be until `due`."""
        group = self._groups.get_or_make((origin, key), lambda: _Group(origin))
        now = self._clock.now()
        if group not in self._queues and group.room_at(now) == now:
            return Permit(group)
        turn = _Turn(self, group, due)
        try:
            await self._queues.wait(group, turn.ask, turn.give_back, cost=1, timeout=seconds(max(due - now, 0)))
        except QuotaExceeded as refused:
            raise WaitTooLong(origin, refused.decision.retry_after) from None
        except LimiterClosed:
            raise LimiterClosed("the transport is closed, and sends nothing any more") from None
        return turn.permit

    def answered(self, permit: Permit, status: int, headers: Mapping[str, str]) -> None:
        group, now = permit.group, self._clock.now()
        said = fields.read(headers, now)
        told = {self._learn(permit, quota, now) for quota in said.quotas}
        for key in {_key(group, *policy) for policy in said.policies}:
            if (untold := group.quotas.peek(key)) is not None and untold not in told:
                group.quotas.pop(key)  # it has more room than those that are told
        for quota in permit.marks.keys() - told:
            quota.available += 1  # it was not spent
        if status == 429 or (status == 503 and said.retry_after is not None):
            self._close(group, said, now)
        elif group.finding_out in permit.marks:
            group.finding_out = None
            group.refusals = 0
        self.ended(permit, told)

    def _learn(self, permit: Permit, told: fields.ServerQuota, now: int) -> _QuotaEstimate:
        group, key = permit.group, _key(permit.group, told.name, told.partition)
        quota = group.quotas.get(key) or (self._shared.get(key) if told.partition else None)
        overlapping = None
        if quota is None:
            quota = _QuotaEstimate()
            overlapping = group.overlapping(permit.mark)
        elif quota in permit.marks:
            overlapping = quota.overlapping(permit.marks[quota])
        group.quotas.put(key, quota)
        if told.partition:
            self._shared[key] = quota
        quota.learn(told, overlapping, now)
        return quota

    def _close(self, group: _Group, said: fields.ServerLimits, now: int) -> None:
        """Send nothing until the time that a refusal says, and then one request, to find out."""
        group.refusals += 1
        wait = said.retry_after
        if wait is None:
            unsaid = _UNSAID.bound_s(group.refusals) * random.uniform(0.5, 1)
            wait = max((quota.reset_s for quota in said.quotas), default=unsaid)
        if group.finding_out is None:
            group.finding_out = _QuotaEstimate()
        group.finding_out.available = 0
        group.finding_out.close_for(wait, now)

    def ended(self, permit: Permit, told: Iterable[_QuotaEstimate] = ()) -> None:
        """Tell those who wait that a request is not under way any more, answered or not."""
        permit.end()
        for quota in {*permit.marks, *told}:
            waiting, quota.waiting = quota.waiting, set()
            for group in waiting:
                group.news.set()
                self._queues.ask_now(group)

    def may_be_sent_by(self, permit: Permit, due: int) -> bool:
        """Return whether the same request may have another turn by then, as far as it is known."""
        room_at = permit.group.room_at(self._clock.now())
        return room_at is None or room_at <= due

    async def close(self) -> None:
        await self._queues.close()


class _Turn:
    """A request that waits for its turn."""

    permit: Permit

    def __init__(self, limits: OriginLimits, group: _Group, due: int) -> None:
        self._limits = limits
        self._group = group
        self._due = due

    async def ask(self) -> Decision:
        group, clock = self._group, self._limits._clock
        while (room_at := group.room_at(now := clock.now())) is None and now < self._due:
            group.news = Signal()
            await group.news.wait(seconds(self._due - now))
        if room_at != now:
            retry_after = None if room_at is None else seconds(room_at - now)
            return Decision(False, group.origin, 1, (), retry_after, "quota", at_us=now)
        self.permit = Permit(group)
        return Decision(True, group.origin, 1, (), at_us=now)

    async def give_back(self, _: Decision) -> None:
        self.permit.cancel()
        self._limits.ended(self.permit)


def _key(group: _Group, name: str, partition: str) -> tuple[str, str, str]:
    return (group.origin if partition else "", name, partition)
