"""Erased means gone, also where it broke off on the way."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ratelimit import Limiter, Policy
from ratelimit.errors import StoreUnavailable
from ratelimit.names import Key
from ratelimit.store import MemoryStore, TableStore
from ratelimit.store.directory import Identity, User
from ratelimit.usage import UsageLog
from ratelimit.usage.reports import Reports
from tests.usage.noon import at_noon, days_ago


async def test_erase_leaves_no_trace_and_can_be_repeated(store: TableStore, user: str) -> None:
    clock = at_noon()
    limiter = Limiter(store, [Policy("hint", "5/day")], clock=clock, deadline=30)
    async with UsageLog(store, clock=clock) as usage:
        for someone in (user, user + "x"):
            await limiter.check(someone, "hint")
            await usage.record(someone, "hint", at=days_ago(89.5))
            await usage.record(someone, "hint", at=days_ago(-0.03), id="order-17")
            await usage.record(someone, "hint")
            entry = User(someone, identities=[Identity.email(f"{someone}@example.com")])
            assert await store.directory.replace(None, entry, now=clock.now())
        assert await usage.erase(user) == 3 + 1 + 1 + 2, "events, the note of an id, a counter, the entry, its e-mail"
        assert await usage.erase(user) == 0
        assert (await usage.events(user)).events == ()
        assert await store.read(Key(user, "hint")) == {}
        assert await store.directory.read(User, user) is None
        assert await store.directory.find(Identity.email(f"{user}@example.com")) is None
        assert await store.directory.find(Identity.email(f"{user}x@example.com")) == user + "x"
        assert len((await usage.events(user + "x")).events) == 3
        assert await store.read(Key(user + "x", "hint"))


@pytest.mark.parametrize("applied", [False, True])
async def test_an_erase_that_broke_off_anywhere_goes_on_when_repeated(applied: bool) -> None:
    """Whatever the call that fails, and whether the store had done by then what it was asked for."""
    erased = fails_at = 0
    while not erased:
        fails_at += 1
        clock, store = at_noon(), MemoryStore()
        await Limiter(store, [Policy("of no policy here", "5/day")], clock=clock).check("alice", "of no policy here")
        async with UsageLog(store, clock=clock) as usage:
            await usage.record("alice", "of no policy here", id="order-17")
            await usage.flush()
        entry = User("alice", identities=[Identity.email("alice@example.com")])
        assert await store.directory.replace(None, entry, now=clock.now())
        calls = BreaksOff(store, fails_at, applied=applied)
        reports = Reports(store, ["hint"], clock)
        try:
            erased = await reports.erase("alice")
        except StoreUnavailable:
            await reports.erase("alice")
        count, calls.fails_at = calls.count, 0
        assert (len(store.events), await store.events.forget("alice")) == (0, 0)
        assert await store.read(Key("alice", "of no policy here")) == {}
        assert await store.directory.find(Identity.email("alice@example.com")) is None
        assert await store.directory.read(User, "alice") is None
    assert fails_at > 2 * 90, "two calls a day, and some more"
    assert count < fails_at
    assert erased == 1 + 1 + 1 + 2


class BreaksOff:
    """From now on every call of a store is counted, and the one of this number fails."""

    def __init__(self, store: MemoryStore, fails_at: int, *, applied: bool) -> None:
        self.count = 0
        self.fails_at = fails_at
        self._applied = applied
        for part, names in (
            (store, ("read", "delete")),
            (store.events, ("actions", "erase", "forget")),
            (store.directory, ("read", "replace")),
        ):
            for name in names:
                setattr(part, name, self._counted(getattr(part, name)))

    def _counted(self, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def counted(*args: Any, **options: Any) -> Any:
            self.count += 1
            fails = self.count == self.fails_at
            answer = await call(*args, **options) if self._applied or not fails else None
            if fails:
                raise StoreUnavailable("broke off")
            return answer

        return counted
