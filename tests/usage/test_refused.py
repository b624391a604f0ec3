"""An event that the store calls invalid holds up no other one, and is only given up where the store takes others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from ratelimit.dynamodb import DynamoDBStore
from ratelimit.errors import AccessDenied, StoreRefused
from ratelimit.event import UsageEvent
from ratelimit.usage import UsageLog
from tests.engines import Engine
from tests.usage.conftest import on_engine
from tests.usage.stores import Fault, Pauses, ScriptedEvents, scripted
from tests.usage.test_event import event
from tests.usage.test_journal import files, journaled


def refusing(*ids: str) -> Fault:
    """As DynamoDB does: one bad item, and the whole batch is refused."""

    async def fault(store: ScriptedEvents, batch: Sequence[UsageEvent]) -> Sequence[UsageEvent]:
        if any(one.id in ids for one in batch):
            raise StoreRefused("refused the request: number overflow")
        return await store.take(batch)

    return fault


def opened() -> tuple[UsageLog, ScriptedEvents]:
    store, events = scripted()
    return UsageLog(store, flush_interval=0.01, grace=0.0, sleep=Pauses()), events


async def test_bad_events_hold_up_no_others(caplog: pytest.LogCaptureFixture) -> None:
    usage, events = opened()
    async with usage:
        bad = {f"bad-{n}" for n in range(8)}
        events.always = refusing(*bad)
        good = set()
        for n in range(200):
            good.add(await usage.record("alice", "hint"))
            if n % 25 == 0:
                await usage.record("alice", "hint", id=f"bad-{n // 25}")
        async with asyncio.timeout(30):
            await usage.flush()
        assert {one.id for one in events} == good
        assert (usage.stats.written, usage.stats.dropped) == (200, 8)
        assert (usage.stats.depth, usage.stats.in_flight) == (0, 0)
    for one in bad:
        assert caplog.text.count(f"refuses the usage event '{one}', and it is lost: refused the request: number") == 1


async def test_a_refused_event_is_not_kept_in_the_journal(tmp_path: Path) -> None:
    usage, events = journaled(tmp_path, grace=30.0)
    events.always = refusing("bad")
    async with usage:
        await asyncio.gather(*(usage.record("alice", "hint", id="bad" if n == 7 else None) for n in range(30)))
    assert (usage.stats.written, usage.stats.dropped) == (29, 1)
    assert files(tmp_path) == []


async def test_while_all_are_refused_none_is_lost() -> None:
    """That is the table's fault, and may be mended."""
    usage, events = opened()
    async with usage:
        ids = {await usage.record("alice", "hint") for _ in range(60)}
        events.always = refusing(*ids)
        flushing = asyncio.create_task(usage.flush())
        while usage.stats.retried < 200:
            await asyncio.sleep(0)
        assert usage.stats.dropped == 0
        events.always = None
        async with asyncio.timeout(30):
            await flushing
        assert {one.id for one in events} == ids


async def test_one_that_is_refused_alone_goes_when_others_are_taken(caplog: pytest.LogCaptureFixture) -> None:
    usage, events = opened()
    async with usage:
        await usage.record("alice", "hint", id="bad")
        events.always = refusing("bad")
        flushing = asyncio.create_task(usage.flush())
        while usage.stats.retried < 5:
            await asyncio.sleep(0)
        await usage.record("alice", "hint")
        async with asyncio.timeout(30):
            await flushing
            await usage.flush()
        assert (usage.stats.written, usage.stats.dropped) == (1, 1)
    assert [line.split(":")[0] for line in caplog.messages if "store take" in line or "does not" in line] == [
        "usage events wait, the store does not take them",
        "the store takes usage events again",
    ]


async def test_events_that_are_held_up_are_heard_of_while_others_get_through(caplog: pytest.LogCaptureFixture) -> None:
    """As where `PutItem` is denied, and `BatchWriteItem` is not."""

    async def no_put_item(store: ScriptedEvents, batch: Sequence[UsageEvent]) -> Sequence[UsageEvent]:
        left = [one for one in batch if not one.placed_by_id]
        if len(left) == len(batch):
            raise AccessDenied("it lacks the permission dynamodb:PutItem")
        await store.take([one for one in batch if one.placed_by_id])
        return left

    usage, events = opened()
    events.always = no_put_item
    async with usage:
        await usage.record("alice", "hint", id="order-17")
        for n in range(20):
            await usage.record("alice", "hint")
            async with asyncio.timeout(30):
                await events.hold(n + 1)
        async with asyncio.timeout(30):
            while "usage events wait" not in caplog.text:
                await asyncio.sleep(0.001)
        assert "the store does not take them: it lacks the permission dynamodb:PutItem" in caplog.text
        assert "takes usage events again" not in caplog.text
        events.always = None
        async with asyncio.timeout(30):
            await usage.flush()
    assert caplog.text.count("the store takes usage events again") == 1
    assert usage.stats.dropped == 0


async def test_dynamodb_says_which_request_is_invalid(engine: Engine) -> None:
    async with on_engine(engine) as store:
        assert isinstance(store, DynamoDBStore)
        with pytest.raises(StoreRefused):
            await store.events.put([msgspec.structs.replace(event(), duration=float("nan"))])
