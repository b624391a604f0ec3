"""A journal that is not as it was left: damaged bytes, locks and files that cannot be opened. The rest is read."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit.event import UsageEvent
from ratelimit.usage.segments import JournalLock, Segment, SegmentRead, adopt_dead, find_frame, frame
from tests.usage.files import event
from tests.usage.test_journal import events_made, files, journaled, left_behind, segment_of


def segment_with(directory: Path, data: bytes) -> Segment:
    lock = JournalLock.create(directory)
    path = directory / f"{lock.name}-000001.journal"
    path.write_bytes(data)
    return Segment(path, lock, size=len(data))


def read_all(segment: Segment) -> tuple[list[UsageEvent], list[SegmentRead]]:
    """Every event, and every place where there was none."""
    start, events, gaps = 0, [], []
    while start < segment.size:
        found = segment.read(start, segment.size, most=500)
        assert found.end > start
        start = found.end
        events += found.events
        gaps += [] if found.events else [found]
    return events, gaps


async def replayed(directory: Path) -> tuple[set[str], int, int]:
    usage, events = journaled(directory)
    async with usage:
        await usage.flush()
        assert (usage.stats.replayed, usage.stats.dropped) == (len(events), 0)
        return {one.id for one in events}, usage.stats.torn, usage.stats.damaged


async def test_one_bit_costs_one_record_and_the_file_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ids = await left_behind(tmp_path, 400)
    segment = segment_of(tmp_path)
    data = bytearray(segment.read_bytes())
    data[len(data) // 10] ^= 1
    segment.write_bytes(data)
    found, torn, damaged = await replayed(tmp_path)
    assert found < ids
    assert (len(found), torn, damaged) == (399, 0, 1)
    kept = segment.with_name(segment.name + ".damaged")
    assert list(tmp_path.iterdir()) == [kept]
    assert kept.read_bytes() == data
    assert f"{segment.name} is damaged at byte " in caplog.text
    assert await replayed(tmp_path) == (set(), 0, 0), "nobody reads it again"
    assert list(tmp_path.iterdir()) == [kept]


@given(st.lists(events_made, min_size=2, max_size=5), st.data())
def test_what_is_sound_behind_a_damaged_byte_is_read(
    tmp_path_factory: pytest.TempPathFactory, made: list[UsageEvent], data: st.DataObject
) -> None:
    frames = [frame(one) for one in made]
    whole = bytearray(b"".join(frames))
    at = data.draw(st.integers(0, len(whole) - len(frames[-1]) - 1))
    hit = next(n for n in range(len(frames)) if at < len(b"".join(frames[: n + 1])))
    whole[at] ^= 1 << data.draw(st.integers(0, 7))
    segment = segment_with(tmp_path_factory.mktemp("journal"), bytes(whole))
    events, gaps = read_all(segment)
    assert events == made[:hit] + made[hit + 1 :]
    assert [gap.torn for gap in gaps] == [False]
    segment.lock.release()


def test_damage_may_be_longer_than_what_is_read_at_once(tmp_path: Path) -> None:
    one, other = event(), event(user="bob")
    segment = segment_with(tmp_path, frame(one) + os.urandom(500_000) + frame(other))
    events, gaps = read_all(segment)
    assert (events, [gap.torn for gap in gaps]) == ([one, other], [False])


@given(events_made, st.integers(0, 20))
def test_nobody_can_hide_a_record_in_another(hidden: UsageEvent, shift: int) -> None:
    text = frame(hidden).decode("latin-1")
    outer = frame(event(metadata={"a" * shift: text}))
    assert text.encode() not in outer
    assert find_frame(b"\xff" * 4 + outer[4:]) == -1
    assert find_frame(b"\xff" * 8 + outer) == 8


@pytest.mark.parametrize(
    "left",
    [b"", b"\0" * 5000, frame(event())[:6], frame(event())[:-1]],
    ids=["nothing", "zeros", "half a head", "all but a byte"],
)
async def test_what_a_crash_leaves_at_the_end_is_torn(tmp_path: Path, left: bytes) -> None:
    ids = await left_behind(tmp_path, 10)
    with segment_of(tmp_path).open("ab") as file:
        file.write(left)
    assert await replayed(tmp_path) == (ids, int(bool(left)), 0)
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    "payload", [b'{"id":"x","user":"\xff","action":"b","at":1}', b'{"id":1}', b"", b"[" * 10_000], ids=repr
)
async def test_a_whole_frame_that_is_no_event_is_damage(tmp_path: Path, payload: bytes) -> None:
    ids = await left_behind(tmp_path, 20)
    bad = struct.pack("<II", len(payload), crc32(payload)) + payload
    (tmp_path / "1-0000000000000000-000001.journal").write_bytes(bad + b"x" * 8)
    assert await replayed(tmp_path) == (ids, 0, 1)
    assert files(tmp_path) == ["000001.journal.damaged"]


async def test_a_lock_that_cannot_be_opened_stops_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ids = [await left_behind(tmp_path, 10) for _ in range(4)]
    names = sorted(path.stem for path in tmp_path.glob("*.lock"))
    (tmp_path / f"{names[1]}.lock").unlink()
    (tmp_path / f"{names[1]}.lock").mkdir()
    usage, events = journaled(tmp_path, adopt_interval=0.02, grace=10.0)
    async with usage:
        await usage.flush()
        assert len(events) == 30
        assert caplog.text.count(f"{names[1]}, it is tried again: [Errno 21] Is a directory") == 1
        (tmp_path / f"{names[1]}.lock").rmdir()
        await events.hold(40)
    assert {one.id for one in events} == set().union(*ids)
    assert files(tmp_path) == []


def test_a_lock_whose_files_cannot_be_seen_is_let_go(tmp_path: Path) -> None:
    lock = JournalLock.create(tmp_path)
    lock.append(frame(event()), segment_bytes=1000)
    lock.release()
    gone = tmp_path / f"{lock.name}-000002.journal"
    gone.symlink_to("nowhere")
    locks, failures = adopt_dead(tmp_path)
    assert locks == []
    assert failures.keys() == {lock.name}
    gone.unlink()
    assert len(adopt_dead(tmp_path)[0]) == 1, "its lock was not kept"


async def test_a_segment_that_cannot_be_read_is_read_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a process has too many files open for a moment."""
    await left_behind(tmp_path, 10, segment_bytes=1)
    whole, failures = Segment.read, iter(range(3))

    def read(self: Segment, start: int, end: int, *, most: int) -> SegmentRead:
        if next(failures, None) is not None:
            raise OSError(errno.EMFILE, "Too many open files")
        return whole(self, start, end, most=most)

    monkeypatch.setattr(Segment, "read", read)
    usage, events = journaled(tmp_path, adopt_interval=0.02, grace=10.0)
    async with usage:
        await usage.flush()
        await events.hold(10)
        await usage.flush()
    assert usage.stats.replayed == 10
    assert files(tmp_path) == []
