"""What a warm check costs the client: bare aiobotocore, the store on either lane, and the parts of the fast one."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session

from loadtest.bench.measure import Call, Figures, compare
from ratelimit.clock import SystemClock
from ratelimit.dynamodb import DynamoDBStore
from ratelimit.dynamodb.expressions import encode
from ratelimit.dynamodb.schema import limit_key
from ratelimit.limiter import Limiter
from ratelimit.limiter.belief import Belief
from ratelimit.limiter.planner import Planner
from ratelimit.names import Key
from ratelimit.policy import Policy
from ratelimit.store.write import Write

_USERS = 256
_POOL = 64
_POLICIES = [
    Policy("hint", "1000000/hour; 10000000/day"),
    Policy("bucket", "1000000/hour; 10000000/day", algorithm="gcra"),
]


async def run(endpoint: str, *, rounds: int, seconds: float, at_once: int) -> list[Figures]:
    """All contenders, against the stub at this endpoint."""
    os.environ |= {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "eu-west-1"}
    async with AsyncExitStack() as exits:
        limiters = {
            lane: await exits.enter_async_context(Limiter(_store(endpoint, lane == "fast"), _POLICIES, deadline=5))
            for lane in ("slow", "fast")
        }
        client = await exits.enter_async_context(
            get_session().create_client(
                "dynamodb",
                region_name="eu-west-1",
                endpoint_url=endpoint,
                config=AioConfig(max_pool_connections=_POOL, proxies={}),
            )
        )
        fast = limiters["fast"]
        contenders: dict[str, Call] = {
            "aiobotocore update_item": _bare(client),
            "check, aiobotocore lane": _check(limiters["slow"], "hint"),
            "check, fast lane": _check(fast, "hint"),
            "check, fast lane, gcra": _check(fast, "bucket"),
            "store.apply, fast lane": _apply(fast),
        }
        figures = await compare(contenders, rounds=rounds, seconds=seconds, at_once=at_once)
        assert isinstance(fast.store, DynamoDBStore)
        assert not fast.store.stats.fallbacks, fast.store.stats
        return figures


def _store(endpoint: str, fast: bool) -> DynamoDBStore:
    return DynamoDBStore(table="bench", endpoint=endpoint, pool=_POOL, fast=fast)


def _users() -> Iterator[str]:
    return itertools.cycle([f"user-{number}" for number in range(_USERS)])


def _write() -> Write:
    """What a warm check of the first policy sends."""
    write = Planner(_POLICIES[0]).spend(now := SystemClock().now(), 1, belief := Belief())
    belief.know({}, now)
    write = Planner(_POLICIES[0]).spend(now, 1, belief)
    assert write is not None
    return write


def _bare(client: Any) -> Call:
    users, update = _users(), encode(_write())

    async def call() -> None:
        await client.update_item(TableName="bench", Key=limit_key(Key(next(users), "hint")), **update)

    return call


def _apply(limiter: Limiter) -> Call:
    users, write = _users(), _write()

    async def call() -> None:
        await limiter.store.apply(Key(next(users), "hint"), write, now=0)

    return call


def _check(limiter: Limiter, action: str) -> Call:
    users = _users()

    async def call() -> None:
        decision = await limiter.check(next(users), action)
        assert decision.reason is None, decision

    return call
