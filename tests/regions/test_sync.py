"""Threads without an event loop count over regions as everybody else does."""

from __future__ import annotations

import asyncio

import pytest

from ratelimit.dynamodb import Settings
from ratelimit.policy import Policy
from ratelimit.sync import Limiter, open_store
from tests.dynamodb.tables import replicated
from tests.engines import Engine

REGIONS = ("eu-west-1", "us-east-1")
USERS = tuple(f"user-{number}" for number in range(8))


@pytest.mark.parametrize(
    ("mode", "allowed"),
    [("home", "yyyynn"), ("sum", "yyyynn"), ("split", "yynyyn")],
)
async def test_a_quota_holds_over_both_regions(engine: Engine, mode: str, allowed: str) -> None:
    if engine.name != "ministack":
        pytest.skip("this engine has no replicas")
    async with replicated(engine, *REGIONS) as table:
        admitted = await asyncio.to_thread(count, engine, table, mode)
    assert admitted == {user: [each == "y" for each in allowed] for user in USERS}


def count(engine: Engine, table: Settings, mode: str) -> dict[str, list[bool]]:
    url = f"dynamodb://{table.table}?endpoint={engine.endpoint}&regions={','.join(REGIONS)}&mode={mode}"
    stores = [open_store(f"{url}&region={region}") for region in REGIONS]
    policy = Policy("hint", "4/day", on_unavailable="deny")
    here, there = limiters = [Limiter(store, [policy], denial_cache=0) for store in stores]
    admitted = {
        # At first nobody has counted, and what is believed then is a second old at most: the other's come last.
        user: [limiter.check(user, "hint").allowed for limiter in (here, here, here, there, there, there)]
        for user in USERS
    }
    assert [sum(limiter.totals(USERS[0])["hint"].values()) for limiter in limiters] == [4, 4]
    for limiter, store in zip(limiters, stores, strict=True):
        limiter.close()
        store.close()
    return admitted
