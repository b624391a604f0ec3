"""`ratelimit table sweep` deletes what has expired, and nothing else."""

from __future__ import annotations

from uuid import uuid4

import pytest

from ratelimit import Limiter, Policy
from ratelimit.clock import SECOND, SystemClock
from ratelimit.dynamodb import DynamoDBStore, Settings, create_table
from ratelimit.dynamodb.scans import sweep_table
from ratelimit.names import Key
from ratelimit.store import Add, Write
from ratelimit.testing import FakeClock
from tests.cli.command import Command
from tests.cli.command import ratelimit as ratelimit
from tests.engines import Engine


@pytest.fixture
async def settings(engine: Engine) -> Settings:
    settings = Settings(table=f"sweep-{uuid4()}", endpoint=engine.endpoint, region="eu-west-1")
    await create_table(settings)
    return settings


async def test_only_what_has_expired_goes(settings: Settings) -> None:
    now = SystemClock().now()
    clock = FakeClock(now / SECOND)
    async with DynamoDBStore(settings) as store:
        for number in range(60):
            write = Write((Add("n", 1),), expires_at=now // SECOND + (100 if number < 10 else 100_000))
            await store.apply(Key(f"user-{number}", "hint"), write, now=now)
        limiter = Limiter(store, [Policy("hint", "5/day")], clock=clock, deadline=30)
        await limiter.check("user-0", "hint")  # which moves its time
        assert await sweep_table(settings, clock=clock) == 0
        clock.advance(200)
        assert await sweep_table(settings, clock=clock) == 9
        assert await sweep_table(settings, clock=clock) == 0
        left = {key.user for key, _ in (await store.scans.records()).entries}
    assert left == {"user-0", *(f"user-{number}" for number in range(10, 60))}


def test_the_command(ratelimit: Command, engine: Engine) -> None:
    url = engine.store_url(f"sweep-{uuid4()}")
    ratelimit("table", "create", url)
    assert ratelimit("table", "sweep", url).out.endswith(": 0 expired items deleted\n")
    assert ratelimit("table", "sweep", url, "--json").json["swept"] == 0
