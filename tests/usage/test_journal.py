"""The journal: on the disk before anybody is told, back at the next start, and not in the way when the disk fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit import ConfigError, UsageEvent, UsageLog
from ratelimit.usage.segments import JournalLock, adopt_dead, frame, unframe
from tests.usage.disks import BrokenDisk, CountingDisk, FullDisk
from tests.usage.files import event
from tests.usage.stores import ScriptedEvents, never, scripted

events_made = st.builds(
    event,
    user=st.sampled_from(["alice", "bob#%", "ü"]),
    cost=st.integers(0, 10**12),
    resource=st.none() | st.text(st.characters(exclude_categories=["Cs"])),
    metadata=st.dictionaries(st.text("abc"), st.integers() | st.text("xyz")),
)


def journaled(directory: Path, **options: Any) -> tuple[UsageLog, ScriptedEvents]:
    store, events = scripted()
    options = {"journal_dir": directory, "grace": 0.0, "flush_interval": 0.01, **options}
    return UsageLog(store, **options), events


def files(directory: Path) -> list[str]:
    return sorted(path.name.rpartition("-")[2] for path in directory.iterdir())


def segment_of(directory: Path) -> Path:
    (segment,) = directory.glob("*.journal")
    return segment


async def left_behind(directory: Path, count: int, **options: Any) -> set[str]:
    """The ids of events that a log kept, and did not get into the table."""
    usage, events = journaled(directory, **options)
    events.always = never
    async with usage:
        return {await usage.record("alice", "hint", metadata={"n": n}) for n in range(count)}


@given(st.lists(events_made))
def test_frames_come_back_as_they_were(made: list[UsageEvent]) -> None:
    data = b"".join(map(frame, made))
    found = list(unframe(data))
    assert [one for one, _ in found] == made
    assert [end for _, end in found] == [len(b"".join(map(frame, made[: n + 1]))) for n in range(len(made))]


@given(st.lists(events_made, min_size=1, max_size=5), st.data())
def test_a_torn_or_damaged_end_is_never_taken_for_a_record(made: list[UsageEvent], data: st.DataObject) -> None:
    frames = [frame(one) for one in made]
    whole = b"".join(frames)
    cut = data.draw(st.integers(0, len(whole) - 1))
    kept = [one for n, one in enumerate(made) if len(b"".join(frames[: n + 1])) <= cut]
    assert [one for one, _ in unframe(whole[:cut])] == kept
    damaged = whole[:cut] + bytes([whole[cut] ^ (1 << data.draw(st.integers(0, 7)))]) + whole[cut + 1 :]
    assert [one for one, _ in unframe(damaged)] == kept


async def test_a_record_is_on_the_disk_when_record_returns(tmp_path: Path) -> None:
    usage, events = journaled(tmp_path)
    events.always = never
    async with usage:
        event_id = await usage.record("alice", "hint")
        data = segment_of(tmp_path).read_bytes()
        assert [one.id for one, _ in unframe(data)] == [event_id]
        assert usage.stats.journal_bytes == len(data)


async def test_many_share_one_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = CountingDisk()
    disk.install(monkeypatch)
    usage, _ = journaled(tmp_path)
    async with usage:
        await asyncio.gather(*(usage.record("alice", "hint") for _ in range(500)))
        assert disk.syncs <= 4, "one for the directory, one for the first event, one for all that came meanwhile"


async def test_nothing_is_left_of_what_is_in_the_table(tmp_path: Path) -> None:
    usage, events = journaled(tmp_path, segment_bytes=2000, grace=10.0)
    async with usage:
        for _ in range(10):
            await asyncio.gather(*(usage.record("alice", "hint") for _ in range(20)))
        await usage.flush()
        assert usage.stats.journal_bytes < 8000, "finished segments go at once"
    assert len(events) == 200
    assert files(tmp_path) == []
    assert usage.stats.journal_bytes == 0


async def test_the_next_start_writes_what_was_left(tmp_path: Path) -> None:
    ids = await left_behind(tmp_path, 100, segment_bytes=3000)
    assert len(files(tmp_path)) > 3
    usage, _ = journaled(tmp_path, grace=10.0)
    async with usage:
        own = await usage.record("alice", "hint")
        await usage.flush()
        assert {one.id for one in (await usage.events("alice", limit=1000)).events} == {*ids, own}
        assert usage.stats.replayed == 100
    assert files(tmp_path) == []


async def test_a_replay_that_is_cut_short_is_done_again(tmp_path: Path) -> None:
    ids = await left_behind(tmp_path, 60, segment_bytes=1500)
    for _ in range(2):
        usage, events = journaled(tmp_path)
        events.always = never
        async with usage:
            await asyncio.sleep(0.02)
    usage, events = journaled(tmp_path)
    async with usage:
        await usage.flush()
        assert {one.id for one in (await usage.events("alice", limit=1000)).events} == ids
    assert files(tmp_path) == []


async def test_a_torn_end_is_skipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ids = await left_behind(tmp_path, 10)
    with segment_of(tmp_path).open("ab") as file:
        file.write(frame(event())[:-3])
    usage, _ = journaled(tmp_path)
    async with usage:
        await usage.flush()
        assert {one.id for one in (await usage.events("alice")).events} == ids
        assert usage.stats.torn == 1
    assert "is torn: its last" in caplog.text
    assert files(tmp_path) == []


async def test_the_segments_of_the_living_are_left_alone(tmp_path: Path) -> None:
    living, events = journaled(tmp_path)
    events.always = never
    async with living:
        await living.record("alice", "hint")
        before = sorted(tmp_path.iterdir())
        other, others = journaled(tmp_path)
        async with other:
            await other.record("bob", "hint")
            await other.flush()
            assert other.stats.replayed == 0
            assert len(others) == 1
        assert sorted(tmp_path.iterdir()) == before
        assert len(before) == 2, "a lock and a segment, of the one that lives"


async def test_the_segments_of_one_that_dies_later_are_adopted(tmp_path: Path) -> None:
    usage, events = journaled(tmp_path, adopt_interval=0.02)
    async with usage:
        ids = await left_behind(tmp_path, 10)
        async with asyncio.timeout(60):
            await events.hold(10)
        assert {one.id for one in (await usage.events("alice")).events} == ids


def test_only_one_adopts_a_lock(tmp_path: Path) -> None:
    lock = JournalLock.create(tmp_path)
    lock.append(frame(event()), segment_bytes=1000)
    assert adopt_dead(tmp_path) == ([], {})
    lock.release()
    ((adopted,), failures) = adopt_dead(tmp_path)
    assert [segment.size for segment in adopted.segments] == [len(frame(event()))]
    assert failures == {}
    assert adopt_dead(tmp_path) == ([], {})
    adopted.release()
    assert len(adopt_dead(tmp_path)[0]) == 1


@pytest.mark.slow
async def test_a_full_disk_is_a_decision(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FullDisk(room=250)
    disk.install(monkeypatch)
    usage, events = journaled(tmp_path)
    events.always = never
    with caplog.at_level(logging.WARNING, logger="ratelimit"):
        async with usage:
            ids = [await usage.record("alice", "hint") for _ in range(5)]
            assert usage.stats.unjournaled == 3
            assert [record.message for record in caplog.records if "fails" in record.message] == [
                f"the journal in {tmp_path} fails, usage events stay in memory: [Errno 28] No space left on device"
            ]
            disk.room = 10_000
            ids.append(await usage.record("alice", "hint"))
            assert "the journal takes usage events again" in caplog.text
            events.always = None
            await usage.flush()
            assert sorted(one.id for one in (await usage.events("alice")).events) == sorted(ids)


async def test_what_was_kept_before_the_disk_was_full_is_there_after_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as for_now:
        FullDisk(room=250).install(for_now)
        ids = await left_behind(tmp_path, 5)
    usage, _ = journaled(tmp_path)
    async with usage:
        await usage.flush()
        found = {one.id for one in (await usage.events("alice")).events}
        assert found < ids
        assert len(found) == 2
        assert usage.stats.torn == 0, "what was half written has been cut off"


async def test_every_record_waits_for_its_own_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = CountingDisk()
    disk.install(monkeypatch)
    usage, _ = journaled(tmp_path)
    async with usage:
        for syncs in (2, 3, 4):  # one for the directory, before the first
            await usage.record("alice", "hint")
            assert disk.syncs == syncs


async def test_a_disk_that_does_not_sync_is_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = BrokenDisk()
    disk.install(monkeypatch)
    usage, events = journaled(tmp_path)
    async with usage:
        for broken, unjournaled in ((True, 1), (False, 1), (True, 2), (False, 2)):
            disk.broken = broken
            await usage.record("alice", "hint")
            assert usage.stats.unjournaled == unjournaled
        await usage.flush()
        assert len(events) == 4


async def test_the_journal_is_bounded(tmp_path: Path) -> None:
    usage, events = journaled(tmp_path, journal_bytes=500)
    events.always = never
    async with usage:
        for _ in range(10):
            await usage.record("alice", "hint")
        assert usage.stats.journal_bytes <= 500
        assert usage.stats.unjournaled > 0


@pytest.mark.parametrize("durability", ["memory", "journal"])
async def test_when_full_it_spills_to_the_journal_and_reads_it_back(tmp_path: Path, durability: Any) -> None:
    options: dict[str, Any] = {"max_queue": 50, "in_flight": 1, "segment_bytes": 5000, "flush_interval": 60}
    usage, events = journaled(tmp_path, durability=durability, **options)
    gate = asyncio.Event()

    async def behind_the_gate(store: ScriptedEvents, batch: Sequence[UsageEvent]) -> Sequence[UsageEvent]:
        await gate.wait()
        return await store.take(batch)

    events.always = behind_the_gate
    async with usage:
        ids = [await usage.record("alice", "hint", metadata={"n": n}) for n in range(400)]
        assert (usage.stats.depth, usage.stats.spilled) == (50, 400 - 50 - 25)
        gate.set()
        async with asyncio.timeout(20):
            await usage.flush()
        assert sorted(one.id for one in (await usage.events("alice", limit=1000)).events) == sorted(ids)
        assert (usage.stats.dropped, usage.stats.written) == (0, 400)
    assert files(tmp_path) == []


async def test_where_memory_and_disk_are_full_it_drops_and_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FullDisk(room=0).install(monkeypatch)
    usage, events = journaled(tmp_path, durability="memory", max_queue=30, in_flight=1)
    events.always = never
    async with usage:
        for _ in range(60):
            waiting = usage._accept("alice", "hint")
            assert waiting is None or not await waiting
        assert (usage.stats.accepted, usage.stats.dropped, usage.stats.spilled) == (55, 5, 0)


async def test_a_journal_stays_where_it_is_when_the_process_goes_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    usage, events = journaled(Path("journal"))
    events.always = never
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    async with usage:
        await usage.record("alice", "hint")
    assert segment_of(tmp_path / "journal").stat().st_size


async def test_a_directory_that_cannot_be_used_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    usage, _ = journaled(tmp_path / "file" / "journal")
    with pytest.raises(ConfigError, match=r"journal_dir: cannot be used"):
        await usage.open()
