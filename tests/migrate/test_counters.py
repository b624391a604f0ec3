"""A counter is brought over once: whatever is lost on the way, whoever else writes, however often it is tried."""

from __future__ import annotations

from pathlib import Path

import pytest

from ratelimit import AccessDenied, MemoryStore, Quota, StoreUnavailable, Window
from ratelimit.algorithms import Rule, rule
from ratelimit.clock import DAY
from ratelimit.migrate.checkpoint import Scratch
from ratelimit.migrate.counters import CounterWriter
from ratelimit.migrate.ledger import FieldChange
from ratelimit.migrate.rows import Counted
from ratelimit.migrate.tally import MARK, Sum, Tallied
from ratelimit.migrate.target import Target
from ratelimit.migrate.undo import fields_after
from ratelimit.migrate.verify import SIDES, SOURCE, TARGET, Compared, CounterDiff, Verdict
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


def counters(target: Memory) -> CounterWriter:
    return CounterWriter(target, now=NOW)


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
    for outcome in ("written", "there"):
        assert await counters(target).add(Tallied(KEY, {TODAY: Sum(0, 1)}, UNTIL, UNTIL + 5)) == outcome
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
    for outcome in ("written", "there"):
        assert await counters(target).copy(counted(record)) == outcome
    assert await target.record(KEY) == {TODAY: 3, "gh": NOW * 1000 + 7, "u2601": 3, MARK: NOW // 1000}


async def test_what_a_mirror_has_written_is_not_copied_again() -> None:
    target = Memory()
    await target.memory.apply(KEY, Write((Add(TODAY, 2),), 2**33), now=NOW)

    assert await counters(target).follow(counted({TODAY: 4}, by_then={TODAY: 5})) == "written"
    assert (await target.record(KEY))[TODAY] == 5


HOUR = Window(1, "hour")


def gcra(limit: int) -> Rule:
    return rule("gcra", Quota(limit, HOUR))


def spent(limit: int, cost: int) -> Record:
    """The record of a bucket after a charge."""
    return {op.field: op.value for op in gcra(limit).charge(NOW, cost, {}) if type(op) is Put}


def used(limit: int, record: Record) -> int:
    return gcra(limit).state(NOW, 0, record).used


async def standing(record: Record) -> Memory:
    target = Memory()
    puts = tuple(Put(field, value) for field, value in record.items())
    await target.memory.apply(KEY, Write(puts, 2**33), now=NOW)
    return target


def of_rows(limit: int, cost: int) -> Tallied:
    now, end = NOW * 1000, spent(limit, cost)["gh"]
    return Tallied(KEY, {"gh": Sum(now, end - now), "ghl": Sum(limit, 0)}, None, UNTIL)


@pytest.mark.parametrize("before", [7, 10, 60, 100])
@pytest.mark.parametrize("limit", [7, 10, 60, 100])
async def test_units_of_a_bucket_that_counts_by_another_limit_are_added_as_units(before: int, limit: int) -> None:
    target = await standing(spent(before, 5))
    assert await counters(target).add(of_rows(limit, 2)) == "written"
    record = await target.record(KEY)
    assert used(limit, record) == 7
    assert record["ghl"] == limit
    assert record.get("ghr", 0) == (0 if before == limit else spent(before, 5)["gh"] - NOW * 1000)


async def test_a_full_bucket_counts_by_the_limit_of_what_is_added() -> None:
    target = await standing({"gh": NOW * 1000 - 5, "ghl": 100, "ghr": 9})
    await counters(target).add(of_rows(10, 2))
    record = await target.record(KEY)
    assert (used(10, record), record["ghl"], record["ghr"]) == (2, 10, 9)


async def test_a_copied_bucket_keeps_its_units_and_what_was_given_back() -> None:
    target = await standing(spent(10, 4))
    await counters(target).copy(counted({**spent(60, 20), "ghr": 9}))
    record = await target.record(KEY)
    assert used(60, record) == 20
    assert record["ghr"] >= 9
    full = await standing(spent(10, 1))
    await counters(full).copy(counted({"gh": NOW * 1000 - 5, "ghl": 60, "ghr": 9}))
    assert await full.record(KEY) == {**spent(10, 1), "ghr": 9, MARK: UNTIL}


@pytest.mark.parametrize(
    ("since", "left"),
    [
        ({}, {"gh": 1_200, "ghl": 60, "ghr": 4}),
        ({"gh": 1_900}, {"gh": 1_400, "ghl": 60, "ghr": 4}),  # used since
        ({"gh": 9_000, "ghl": 10, "ghr": 900}, {"gh": 9_000, "ghl": 10, "ghr": 900}),  # by another limit since
    ],
)
def test_an_undo_leaves_the_limit_by_which_a_bucket_counts(since: Record, left: Record) -> None:
    planted = {"gh": FieldChange(900, 500, 1_200), "ghl": FieldChange(60, 0, 60), "ghr": FieldChange(4, 0, 2)}
    record = {"gh": 1_700, "ghl": 60, "ghr": 4, **since}
    assert {**record, **fields_after(planted, record, 1)} == left


def test_an_undone_bucket_that_was_not_there_leaves_nothing() -> None:
    planted = {"gh": FieldChange(900, 500, None), "ghl": FieldChange(60, 0, 60), "ghr": FieldChange(4, 0, None)}
    assert fields_after(planted, {"gh": 1_400, "ghl": 60, "ghr": 4}, 1) == {"gh": None, "ghl": None, "ghr": None}
    assert fields_after(planted, {"gh": 1_600, "ghl": 60, "ghr": 4}, 1) == {"gh": 1_200}


@pytest.mark.parametrize(
    ("source", "target", "missing"),
    [
        ({"gh": 9, "ghl": 60, "ghr": 7}, {"gh": 9, "ghl": 60}, 0),
        ({"gh": 9, "ghl": 60}, {"gh": 8, "ghl": 60}, 1),
        ({"gh": 9, "ghl": 60}, {"gh": 8, "ghl": 10}, 0),  # its policy's limit was changed since
        ({"gh": 9, "ghl": 60}, {}, 1),
    ],
)
def test_only_buckets_that_count_by_the_same_limit_are_compared(
    source: Record, target: Record, missing: int, tmp_path: Path
) -> None:
    compared, verdict = Compared(), Verdict()
    with Scratch(tmp_path, SIDES) as scratch:
        both = CounterDiff(scratch, now=0, marked=True)
        both.note(SOURCE, [(KEY, source)])
        both.note(TARGET, [(KEY, {**target, MARK: 1})])
        both.judge(verdict, compared)
    assert compared.missing == missing
