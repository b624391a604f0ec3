"""An export holds every event once, is there when it is complete, goes on where it broke off, and stays small."""

from __future__ import annotations

import csv
import tracemalloc
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from ratelimit.errors import InvalidInput, InvalidUser, OutOfRetention, StoreUnavailable
from ratelimit.event import UsageEvent
from ratelimit.store import MemoryStore, Page, TableStore
from ratelimit.store.memory import MemoryScans
from ratelimit.usage.export import ExportQuery, File, export_events
from ratelimit.usage.formats import COLUMNS, Jsonl
from tests.usage.files import (
    CLOCK,
    NOON,
    EndlessScans,
    Interrupted,
    InterruptedStore,
    event,
    fill,
    lines_of,
    many,
    rest_of,
    to_file,
)
from tests.usage.noon import days_ago


@pytest.mark.parametrize("parts", [1, 3])
async def test_every_event_once_and_nothing_left_beside(tmp_path: Path, parts: int) -> None:
    store, path = MemoryStore(), tmp_path / "events.jsonl"
    made = many(5000)
    await fill(store.events, made)
    done = await to_file(store, path, parts=parts)
    assert Counter(line["id"] for line in lines_of(path)) == Counter(one.id for one in made)
    assert (done.events, done.bytes) == (5000, path.stat().st_size)
    assert rest_of(path) == []


async def test_a_line_says_all_there_is(tmp_path: Path) -> None:
    store, path = MemoryStore(), tmp_path / "events.jsonl"
    at = datetime.fromtimestamp(NOON / 1_000_000, UTC).replace(microsecond=7000)
    await store.events.put([
        event("ä#1", at=at, cost=3, allowed=False, status=429, duration=1.5, resource="r", request_id="q",
              metadata={"big": 2**70, "ü": [None]}, id="order-17"),
    ])  # fmt: skip
    await to_file(store, path)
    (line,) = lines_of(path)
    assert tuple(line) == COLUMNS
    assert line == {
        "id": "order-17", "user": "ä#1", "action": "hint", "time": f"{at:%Y-%m-%d}T12:00:00.007Z", "cost": 3,
        "allowed": False, "status": 429, "duration": 1.5, "resource": "r", "request_id": "q",
        "metadata": {"big": 2**70, "ü": [None]},
    }  # fmt: skip


async def test_csv_is_safe_in_a_spreadsheet(tmp_path: Path) -> None:
    store, path = MemoryStore(), tmp_path / "events.csv"
    texts = ['=HYPERLINK("x")', "+1", "-1", "@SUM(A1)", "\tx", "'quoted", "two\nlines", 'a,"b"', "plain"]
    await store.events.put([event(at_ms=NOON // 1000 + n, resource=text) for n, text in enumerate(texts)])
    await to_file(store, path, "csv")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    cells = sorted(row["resource"] for row in rows)
    assert cells == sorted(f"'{text}" if text[0] in "=+-@\t'" else text for text in texts)
    assert not any(cell[0] in "=+-@\t" for row in rows for cell in row.values() if cell)
    assert (rows[0]["allowed"], rows[0]["status"], rows[0]["metadata"]) == ("true", "", "")


@pytest.mark.parametrize("user", [None, "user-1"])
async def test_only_what_is_asked_for(tmp_path: Path, user: str | None) -> None:
    store, path = MemoryStore(), tmp_path / "events.jsonl"
    made = many(1000)
    await fill(store.events, made)
    since, until = made[800].at, made[100].at
    await to_file(store, path, user=user, since=since, until=until, action="hint", allowed=False)
    wanted = [
        one.id
        for one in made
        if since <= one.at < until and one.action == "hint" and not one.allowed and user in (None, one.user)
    ]
    assert len(wanted) > 2
    found = [line["id"] for line in lines_of(path)]
    assert sorted(found) == sorted(wanted)
    if user is not None:
        assert found == wanted, "newest first"


async def test_nothing_there_is_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    assert (await to_file(MemoryStore(), path, "csv", user="nobody")).events == 0
    assert path.read_bytes() == ",".join(COLUMNS).encode() + b"\r\n"


@pytest.mark.heavy
@pytest.mark.parametrize("format", ["jsonl", "csv"])
@pytest.mark.parametrize("pages", [0, 1, 2, 4])
async def test_it_goes_on_where_it_was_interrupted(tmp_path: Path, format: str, pages: int) -> None:
    store, path, whole = InterruptedStore(), tmp_path / "events", tmp_path / "whole"
    await fill(store.events, many(4500))
    await to_file(store, whole, format)
    whole_bytes = whole.read_bytes()
    whole.unlink()
    store.scanner.pages = pages
    with pytest.raises(Interrupted):
        await to_file(store, path, format)
    assert not path.exists()
    assert rest_of(path) == ["events.checkpoint", "events.part"]
    with (tmp_path / "events.part").open("ab") as part:
        part.write(b"written, and then the machine stopped")
    store.scanner.pages = 10**9
    done = await to_file(store, path, format, resume=True)
    assert path.read_bytes() == whole_bytes
    assert (done.events, done.bytes) == (4500, len(whole_bytes))
    assert rest_of(path) == []


async def test_a_users_export_goes_on_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, path = MemoryStore(), tmp_path / "events.jsonl"
    made = many(3500, users=1)
    await fill(store.events, made)
    page, calls = store.events.page, 0

    async def failing(*args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise Interrupted
        return await page(*args, **named)

    monkeypatch.setattr(store.events, "page", failing)
    with pytest.raises(Interrupted):
        await to_file(store, path, user="user-0", since=days_ago(1))
    monkeypatch.undo()
    await to_file(store, path, user="user-0", since=days_ago(1), resume=True)
    assert [line["id"] for line in lines_of(path)] == [one.id for one in made]


@pytest.fixture
async def broken_off(tmp_path: Path) -> Path:
    """The file of an export that was interrupted."""
    store, path = InterruptedStore(), tmp_path / "events.jsonl"
    await fill(store.events, many(2500))
    store.scanner.pages = 1
    with pytest.raises(Interrupted):
        await to_file(store, path)
    return path


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"user": "alice"}, "user was None and is 'alice'"),
        ({"since": days_ago(1)}, "since was None and is"),
        ({"allowed": True, "parts": 2}, "allowed was None and is True, parts was 1 and is 2"),
    ],
)
async def test_another_query_is_refused(broken_off: Path, other: dict[str, Any], told: str) -> None:
    before = rest_of(broken_off)
    with pytest.raises(InvalidInput, match="is of another export") as raised:
        await to_file(MemoryStore(), broken_off, resume=True, **other)
    assert told in str(raised.value)
    assert rest_of(broken_off) == before


async def test_an_unfinished_export_is_not_overwritten(broken_off: Path) -> None:
    with pytest.raises(InvalidInput, match="was not finished; add --resume"):
        await to_file(MemoryStore(), broken_off)
    assert rest_of(broken_off) == ["events.jsonl.checkpoint", "events.jsonl.part"]


async def test_what_cannot_be_gone_on_with(tmp_path: Path, broken_off: Path) -> None:
    with pytest.raises(InvalidInput, match="nothing to go on with"):
        await to_file(MemoryStore(), tmp_path / "other.jsonl", resume=True)
    part = tmp_path / "events.jsonl.part"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(InvalidInput, match="shorter than the"):
        await to_file(MemoryStore(), broken_off, resume=True)
    part.unlink()
    with pytest.raises(InvalidInput, match="is missing"):
        await to_file(MemoryStore(), broken_off, resume=True)
    (tmp_path / "events.jsonl.checkpoint").write_text("{")
    with pytest.raises(InvalidInput, match="is damaged"):
        await to_file(MemoryStore(), broken_off, resume=True)


@pytest.mark.parametrize(
    ("asked", "error", "told"),
    [
        ({"since": days_ago(200)}, OutOfRetention, "kept for 90 days"),
        ({"since": days_ago(0), "until": days_ago(0.1)}, InvalidInput, "must not be later"),
        ({"since": NOON // 1000}, InvalidInput, "since must be an aware datetime"),
        ({"user": ""}, InvalidUser, "empty"),
        ({"action": ""}, InvalidInput, "empty"),
        ({"parts": 0}, InvalidInput, "parts must be"),
        ({"user": "alice", "parts": 2}, InvalidInput, "leave parts at 1"),
    ],
)
async def test_bad_questions_leave_nothing_behind(
    tmp_path: Path, asked: dict[str, Any], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        await to_file(MemoryStore(), tmp_path / "events.jsonl", **asked)
    assert list(tmp_path.iterdir()) == []


async def test_a_store_that_is_away_for_a_while_is_asked_again(tmp_path: Path, pauses: list[float]) -> None:
    store, path = _Faltering(failures=5), tmp_path / "events.jsonl"
    await fill(store.events, many(100))
    sink = File(path, Jsonl(), resume=False)
    asked = ExportQuery(store="s", format="jsonl")
    await export_events(store, asked, sink, clock=CLOCK)
    assert (len(lines_of(path)), pauses) == (100, [0.2, 0.4, 0.8, 1.6, 3.2])


async def test_one_that_stays_away_leaves_a_checkpoint(tmp_path: Path, pauses: list[float]) -> None:
    store, path = _Faltering(failures=99), tmp_path / "events.jsonl"
    sink = File(path, Jsonl(), resume=False)
    with pytest.raises(StoreUnavailable, match="away"):
        await export_events(store, ExportQuery(store="s", format="jsonl"), sink, clock=CLOCK)
    assert len(pauses) == 9
    assert rest_of(path) == ["events.jsonl.checkpoint", "events.jsonl.part"]


@pytest.mark.heavy
@pytest.mark.parametrize("format", ["jsonl", "csv"])
async def test_memory_does_not_grow_with_the_events(tmp_path: Path, format: str) -> None:
    peaks = []
    for pages in (2, 5):
        tracemalloc.start()
        await to_file(_with(EndlessScans(pages)), tmp_path / f"{pages}", format)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] * 1.3


def _with(scans: Any) -> TableStore:
    class Store(MemoryStore):
        @property
        def scans(self) -> Any:
            return scans

    return Store()


class _Faltering(MemoryStore):
    """Fails so many times before it answers."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures = failures

    @property
    def scans(self) -> MemoryScans:
        outer = self

        class Scans(MemoryScans):
            async def events(self, **query: Any) -> Page[UsageEvent]:
                outer.failures -= 1
                if outer.failures >= 0:
                    raise StoreUnavailable("away")
                return await super().events(**query)

        return cast(MemoryScans, Scans(self.events, lambda: ()))
