"""Our own contenders: a limiter on each store, checking its users in turn."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from loadtest.bench.worker import Contender
from ratelimit.clock import SystemClock
from ratelimit.decision import Decision
from ratelimit.dynamodb import DynamoDBStore
from ratelimit.limiter import Limiter
from ratelimit.limiter.compiled_policy import CachedRecord, CompiledPolicy
from ratelimit.names import Key
from ratelimit.policy import AlgorithmName, Policy
from ratelimit.store import MemoryStore

USERS = 256
ACTION = "hint"
ROOMY = "1000000000/hour"
TWO = f"{ROOMY}; 1000000000/day"
_COUNTED = 2_000
_NEVER_LATE = 30.0


class Uncoalesced(Limiter):
    """The same, but each check is a write of its own: what the coalescer is held against."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._checker.coalescer = None


@asynccontextmanager
async def embedded(quotas: str = ROOMY, algorithm: AlgorithmName = "fixed_window") -> AsyncIterator[Contender]:
    async with Limiter(MemoryStore(), [Policy(ACTION, quotas, algorithm=algorithm)]) as limiter:
        yield Contender(_Checks(limiter, USERS).one)


@asynccontextmanager
async def nothing(delay: float) -> AsyncIterator[Contender]:
    """No check at all: whoever calls waits, together with all who call in the same turn of the loop, for `delay`
    seconds. What coalesced checks would take if they took nothing."""
    loop = asyncio.get_running_loop()
    waiting: list[asyncio.Future[None]] = []

    def take_off() -> None:
        together = waiting.copy()
        waiting.clear()
        loop.call_later(delay, land, together)

    def land(together: list[asyncio.Future[None]]) -> None:
        for one in together:
            one.set_result(None)

    def call() -> asyncio.Future[None]:
        if not waiting:
            loop.call_soon(take_off)
        waiting.append(loop.create_future())
        return waiting[-1]

    yield Contender(call)


@asynccontextmanager
async def refused(endpoint: str) -> AsyncIterator[Contender]:
    """A check that DynamoDB has refused just now, again and again."""
    store = _store(endpoint)
    policy = Policy(ACTION, "5/day")
    # A minute, the most there is, so that what is measured is the repetition and not the asking once a second.
    async with Limiter(store, [policy], denial_cache=60) as limiter:
        assert not (await limiter.check("abuser", ACTION)).allowed

        async def call() -> None:
            decision = await limiter.check("abuser", ACTION)
            assert not decision.allowed

        async def count() -> dict[str, float]:
            before = dict(store.stats.calls)
            for _ in range(_COUNTED):
                await call()
            return {"calls": float(sum(store.stats.calls.values()) - sum(before.values()))}

        yield Contender(call, count)


@asynccontextmanager
async def on_dynamodb(
    endpoint: str,
    *,
    quotas: str = ROOMY,
    algorithm: AlgorithmName = "fixed_window",
    users: int = USERS,
    fast: bool = True,
    coalesced: bool = True,
    apart: bool = False,
    pool: int = 64,
    create: bool = False,
) -> AsyncIterator[Contender]:
    """On a table at this endpoint, on either lane. `apart`: nobody is checked twice at a time."""
    store = _store(endpoint, fast=fast, pool=pool, create=create)
    policies = [Policy(ACTION, quotas, algorithm=algorithm)]
    made = Limiter if coalesced else Uncoalesced
    async with made(store, policies, deadline=_NEVER_LATE) as limiter:
        checks = _Checks(limiter, users)
        for _ in range(users):
            await checks.one()

        async def count() -> dict[str, float]:
            writes = store.stats.calls.get("UpdateItem", 0) / checks.made
            units = await _units_per_write(endpoint, policies) if create else 1.0
            return {"writes_per_check": writes, "units_per_check": writes * units}

        yield Contender(checks.one_apart if apart else checks.one, count)
        assert not store.stats.fallbacks, store.stats


@asynccontextmanager
async def applying(endpoint: str, quotas: str = ROOMY) -> AsyncIterator[Contender]:
    """The store by itself: the write that a warm check sends, and nothing around it."""
    compiled, now, belief = CompiledPolicy(Policy(ACTION, quotas)), SystemClock().now(), CachedRecord()
    belief.learn({}, now)
    write = compiled.spend(now, 1, belief)
    assert write is not None
    users = itertools.cycle([f"user-{number}" for number in range(USERS)])
    async with _store(endpoint, pool=64) as store:

        async def call() -> None:
            await store.apply(Key(next(users), ACTION), write, now=now)

        yield Contender(call)


async def _units_per_write(endpoint: str, policies: Sequence[Policy]) -> float:
    """As the engine reports them, on warm records. In a store of its own: asking for them costs something."""
    store = _store(endpoint, consumed=True)
    async with Limiter(store, policies, deadline=_NEVER_LATE) as limiter:
        checks = _Checks(limiter, USERS)
        for _ in range(USERS):
            await checks.one()
        store.stats.write_units, store.stats.calls["UpdateItem"] = 0.0, 0
        for _ in range(USERS):
            await checks.one()
        return store.stats.write_units / store.stats.calls["UpdateItem"]


async def exactness(endpoint: str, *, quota: int, checks: int, at_once: int) -> dict[str, float]:
    """Check one key more often than its quota allows, so many at a time, and compare with what the table says."""
    store = _store(endpoint, create=True, consumed=True, pool=at_once)
    async with Limiter(store, [Policy(ACTION, f"{quota}/year")], deadline=_NEVER_LATE, denial_cache=0) as limiter:
        left, admitted = iter(range(checks)), 0

        async def ask() -> None:
            nonlocal admitted
            for _ in left:
                decision = await limiter.check("popular", ACTION)
                admitted += decision.allowed

        await asyncio.gather(*(ask() for _ in range(at_once)))
        days = (await limiter.totals("popular"))[ACTION]
        writes = store.stats.calls["UpdateItem"]
        # A refused write costs a unit as well, and is not reported.
        refused = writes - store.stats.write_units
        return {
            "quota": quota, "admitted": admitted, "counted": sum(days.values()), "writes": writes,
            "write units": store.stats.write_units + max(0.0, refused),
        }  # fmt: skip


class _Checks:
    """Checks that must be allowed, and by the store itself, of one user after the other."""

    def __init__(self, limiter: Limiter, users: int) -> None:
        self.made = 0
        self._limiter = limiter
        self._users = itertools.cycle([f"user-{number}" for number in range(users)])
        self._idle = deque(f"user-{number}" for number in range(users))

    async def one_apart(self) -> None:
        """Of somebody whom no other caller checks at this moment; there have to be as many users as callers."""
        user = self._idle.popleft()
        try:
            self._note(await self._limiter.check(user, ACTION))
        finally:
            self._idle.append(user)

    async def one(self) -> None:
        self._note(await self._limiter.check(next(self._users), ACTION))

    def _note(self, decision: Decision) -> None:
        if not decision.allowed or decision.reason is not None:
            raise AssertionError(decision)
        self.made += 1


def _store(endpoint: str, **options: Any) -> DynamoDBStore:
    return DynamoDBStore(table="bench", endpoint=endpoint, **options)
