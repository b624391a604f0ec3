"""A counter is brought over once: whatever is lost on the way, whoever else writes, however often it is tried."""

from __future__ import annotations

import pytest

from ratelimit import MemoryStore, StoreUnavailable
from ratelimit.clock import DAY
from ratelimit.errors import AccessDenied
from ratelimit.migrate.counters import Counters
from ratelimit.migrate.rows import Counted
from ratelimit.migrate.tally import MARK, Sum, Tallied
from ratelimit.migrate.target import Target
from ratelimit.names import Key
from ratelimit.store import Add, Put, Record, Write
from ratelimit.testing import FakeClock

KEY = Key("alice", "hint")
NOW = FakeClock().now()
TODAY = f"d{NOW // DAY}"
UNTIL = NOW // 1000
USED = Tallied(KEY, {TODAY: Sum(0, 3)}, None, UNTIL)


class Memory(Target):
    """A target without a table: the counters' part of it. `faults` happen to the next writes, one each."""

    def __init__(self, *faults: str) -> None:
        self.memory = MemoryStore()
        self.faults = list(faults)

    async def apply(self, key: Key, write: Write, *, now: int) -> bool:
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "denied":
            raise AccessDenied("no")
        if fault == "not sent":
            raise StoreUnavailable("down")
        applied = (await self.memory.apply(key, write, now=now)).applied
        if fault == "answer lost":
            raise StoreUnavailable("no answer")
        if fault == "raced":
            await self.memory.apply(key, Write((Put("gh", NOW * 1000 + 5),), 2**33), now=now)
        return applied

    async def record(self, key: Key) -> Record:
        return await self.memory.read(key)

    async def pause(self, attempt: int = 1) -> None:
        """At once."""


def counters(target: Memory) -> Counters:
    return Counters(target, now=NOW)


def counted(record: Record, *, by_then: Record | None = None) -> Counted:
    async def fresh() -> Record:
        return record if by_then is None else by_then

    return Counted(KEY, record, fresh)


def bucket(until: int, amount: int) -> Tallied:
    return Tallied(KEY, {"gh": Sum(until, amount)}, None, UNTIL)


@pytest.mark.parametrize("fault", ["", "not sent", "answer lost"])
async def test_whatever_is_lost_it_counts_once(fault: str) -> None:
    target = Memory(*([fault] if fault else []))
    assert await counters(target).add(USED) in ("written", "there")
    assert await counters(target).add(USED) == "there"
    assert await target.record(KEY) == {TODAY: 3, MARK: NOW // 1000}


async def test_it_is_added_to_what_the_table_has_counted() -> None:
    target = Memory()
    await target.memory.apply(KEY, Write((Add(TODAY, 2),), 2**33), now=NOW)
    assert await counters(target).add(USED) == "written"
    assert (await target.record(KEY))[TODAY] == 5


async def test_a_later_run_is_told_the_mark_and_adds_on_it_only_once() -> None:
    target = Memory()
    await counters(target).add(USED)
    all_of_it = Tallied(KEY, {TODAY: Sum(0, 4)}, None, UNTIL + 5)
    mark = await counters(target).add(all_of_it)
    assert mark == UNTIL
    assert (await target.record(KEY))[TODAY] == 3
    for fate in ("written", "there"):
        assert await counters(target).add(Tallied(KEY, {TODAY: Sum(0, 1)}, UNTIL, UNTIL + 5)) == fate
    assert await target.record(KEY) == {TODAY: 4, MARK: UNTIL + 5}


async def test_a_bucket_is_never_emptied_by_what_comes_over() -> None:
    target = Memory("raced")
    await target.memory.apply(KEY, Write((Put("gh", NOW * 1000 + 900),), 2**33), now=NOW)
    assert await counters(target).add(bucket(NOW * 1000, 100)) == "written"
    fuller = Memory()
    await counters(fuller).add(bucket(NOW * 1000, 100))
    assert (await fuller.record(KEY))["gh"] == NOW * 1000 + 100


async def test_what_is_denied_is_not_tried_again() -> None:
    target = Memory("denied", "denied")
    with pytest.raises(AccessDenied):
        await counters(target).add(USED)
    assert target.faults == ["denied"]


async def test_a_record_that_keeps_failing_is_given_up() -> None:
    with pytest.raises(StoreUnavailable, match="kept changing"):
        await counters(Memory(*["not sent"] * 20)).add(USED)


async def test_a_copy_is_made_once_and_leaves_out_what_is_stale() -> None:
    target = Memory()
    record = {TODAY: 3, "d1": 9, "gh": NOW * 1000 + 7, MARK: 5, "u2601": 3}
    for fate in ("written", "there"):
        assert await counters(target).copy(counted(record)) == fate
    assert await target.record(KEY) == {TODAY: 3, "gh": NOW * 1000 + 7, "u2601": 3, MARK: NOW // 1000}


async def test_what_a_mirror_has_written_is_not_copied_again() -> None:
    target = Memory()
    await target.memory.apply(KEY, Write((Add(TODAY, 2),), 2**33), now=NOW)

    assert await counters(target).follow(counted({TODAY: 4}, by_then={TODAY: 5})) == "written"
    assert (await target.record(KEY))[TODAY] == 5
