"""An import puts every event there once, however often; what is no event is named by its line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit import InvalidInput, MemoryStore, StoreThrottled, StoreUnavailable, UsageEvent
from ratelimit.store import TableStore
from ratelimit.usage.export import ExportQuery, export_events
from ratelimit.usage.formats import MAX_LINE_BYTES
from ratelimit.usage.importing import BadLines, Imported, import_events
from ratelimit.usage.parquet import ParquetFile
from tests.usage.files import CLOCK, NOON, event, fill, lines_of, many, to_file
from tests.usage.stores import answer_lost, down, half, scripted

TIME = "2026-01-05T12:00:00Z"
RECENT = event().at.isoformat()


async def bring(store: TableStore, path: Path, **options: Any) -> Imported:
    return await import_events(store.events, path, clock=CLOCK, **options)


def write(path: Path, *lines: dict[str, Any] | str) -> Path:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    return path


def row(**fields: Any) -> dict[str, Any]:
    return {"user": "alice", "action": "hint", "at": NOON // 1000, **fields}


def held(store: MemoryStore) -> list[UsageEvent]:
    return sorted(store.events, key=lambda one: (one.user, one.at_ms, one.id))


async def kept(store: TableStore, user: str) -> list[UsageEvent]:
    return list(await store.events.page(user, event().at.date(), since=0, until=10**13 - 1, limit=100))


TEXTS = st.text(
    st.characters(categories=("L", "M", "N", "P", "S", "Z"), exclude_characters="\u2028\u2029"), min_size=1, max_size=12
)
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
)
JSON = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=3), SCALARS, max_size=3)
EVENTS = st.builds(
    event,
    TEXTS | st.sampled_from(["=1+1", "'quoted", "'=x", "+49", "a,b", 'q"']),
    TEXTS,
    at_ms=st.integers(NOON // 1000 - 10**9, NOON // 1000),
    cost=st.integers(0, 10**12),
    allowed=st.booleans(),
    status=st.none() | st.integers(100, 599),
    duration=st.none() | st.floats(0, 1e6),
    resource=st.none() | st.text(st.characters(exclude_categories=["Cs"])) | st.just("'"),
    request_id=st.none() | st.just("") | TEXTS,
    metadata=st.dictionaries(TEXTS, JSON, max_size=3),
)


@pytest.mark.parametrize("format", ["jsonl", "csv", "parquet"])
@given(made=st.lists(EVENTS, min_size=1, max_size=5))
async def test_what_was_exported_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, format: str, made: list[UsageEvent]
) -> None:
    store, other = MemoryStore(), MemoryStore()
    path = tmp_path_factory.mktemp("round") / f"events.{format}"
    await fill(store.events, made)
    if format == "parquet":
        await export_events(store, ExportQuery(store="s", format="parquet"), ParquetFile(path), clock=CLOCK)
    else:
        await to_file(store, path, format)
    assert (await bring(other, path)).events == len(made)
    assert held(other) == held(store)


@pytest.mark.parametrize("format", ["jsonl", "csv"])
async def test_a_path_with_a_nul_byte_comes_back_as_well(tmp_path: Path, format: str) -> None:
    store, other = MemoryStore(), MemoryStore()
    await fill(store.events, [event("alice", resource="/\0"), event("alice", resource="/ok")])
    await to_file(store, tmp_path / f"events.{format}", format)
    assert (await bring(other, tmp_path / f"events.{format}")).events == 2
    assert held(other) == held(store)


async def test_the_same_file_twice_is_once(tmp_path: Path, store: TableStore, user: str) -> None:
    made = [event(user, at_ms=NOON // 1000 - n) for n in range(40)]
    path = write(tmp_path / "e.jsonl", *(row(user=user, at=one.at_ms, id=one.id) for one in made), row(user=user))
    for _ in range(2):
        assert (await bring(store, path)).events == 41
    day = made[-1].at.date()
    assert len(await store.events.page(user, day, since=0, until=10**13 - 1, limit=100)) == 41


async def test_lines_without_an_id_have_one_of_their_own(tmp_path: Path) -> None:
    store = MemoryStore()
    lines = [row(), row(), row(cost=2), row(user="bob"), row()]
    path = write(tmp_path / "e.jsonl", *lines)
    for _ in range(2):
        await bring(store, path)
    assert len(held(store)) == 5, "three that say the same are three, also when they come again"
    assert all(one.placed_by_id for one in store.events), "which makes them one write each"
    text = "user,action,at,cost\n" + "".join(f"{one['user']},hint,{one['at']},{one.get('cost', '')}\n" for one in lines)
    (tmp_path / "e.csv").write_text(text)
    await bring(store, tmp_path / "e.csv")
    assert len(held(store)) == 5, "the same in another format is the same"


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ("{", "is not JSON"),
        (
            '{"user": "alice", "action": "hint", "at": 1, "cost": 1, "cost": 5}',
            "is not JSON: 'cost' stands in it twice",
        ),
        (row(time="2026-01-05T12:00:00Z"), f"time '2026-01-05T12:00:00Z' and at {NOON // 1000} are two moments"),
        (row(cost="1_000"), "cost must be a whole number"),
        (row(cost=1e3), "cost must be a whole number"),
        ("[1]", "is no JSON object"),
        ("nonsense", "is not JSON"),
        ({"action": "hint", "time": TIME}, "user is missing"),
        ({"user": "alice", "time": TIME}, "action is missing"),
        ({"user": "alice", "action": "hint"}, "time is missing, as in 2026-01-05T12:00:00Z"),
        ({"user": "alice", "action": "hint", "id": "order-17"}, "only the id of a UUIDv7 carries it"),
        (row(at=None, time="2026-01-05T12:00:00"), "has no time zone; add Z"),
        (row(at=None, time="5.1.2026"), "time '5.1.2026' cannot be read; write it like"),
        (row(at=NOON // 10**6), "at is in seconds: give milliseconds"),
        (row(at=NOON // 1000 - 100 * 86_400_000), "at is 100 days ago; events are kept 90 days"),
        (row(at=NOON // 1000 + 86_400_000), "in the future"),
        (row(cost=-1), "cost must be a whole number"),
        (row(cost="3"), "cost must be a whole number"),
        (row(allowed="yes"), "allowed must be True or False"),
        (row(metadata="x"), "metadata must be a JSON object"),
        (row(user="a\nb"), "control character"),
        (row(statsu=200), "unknown field 'statsu'; did you mean 'status'?"),
    ],
)
async def test_a_bad_line_is_named_and_nothing_is_written(tmp_path: Path, bad: dict[str, Any] | str, told: str) -> None:
    store = MemoryStore()
    path = write(tmp_path / "e.jsonl", row(), "", bad, row(cost=2), row(cost=-2))
    with pytest.raises(BadLines) as raised:
        await bring(store, path)
    assert str(raised.value).startswith(f"{path}, line 3: ")
    assert told in str(raised.value)
    assert re.search(r"\(and 1 more lines are bad: \d\); nothing was written", str(raised.value))
    assert held(store) == []
    done = await bring(store, path, on_error="skip")
    assert (done.events, done.rejected, done.rejects) == (2, 2, tmp_path / "e.jsonl.rejected")
    first, second = lines_of(tmp_path / "e.jsonl.rejected")
    assert (first["line"], second["line"]) == (3, 5)
    assert told in first["reason"]
    assert first["text"].strip() == (bad if isinstance(bad, str) else json.dumps(bad))


async def test_rejects_of_an_earlier_run_do_not_stay(tmp_path: Path) -> None:
    path = write(tmp_path / "e.jsonl", row(), "{")
    assert (await bring(MemoryStore(), path, on_error="skip")).rejected == 1
    write(path, row())
    done = await bring(MemoryStore(), path, on_error="skip")
    assert (done.rejected, done.rejects) == (0, None)
    assert [one.name for one in tmp_path.iterdir()] == ["e.jsonl"]


@pytest.mark.heavy
@pytest.mark.parametrize("format", ["jsonl", "csv"])
async def test_a_file_that_was_cut_short(tmp_path: Path, format: str) -> None:
    store, path = MemoryStore(), tmp_path / f"e.{format}"
    made = [event(at_ms=NOON // 1000 - n, resource=f'say "{n}"', metadata={"n": n}) for n in range(50)]
    await fill(store.events, made)
    await to_file(store, path, format)
    whole = path.read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    for cut in range(2, last - 1):  # wherever in its last line
        path.write_bytes(whole[:-cut])
        with pytest.raises(BadLines, match=f"line {50 + (format == 'csv')}: .*(cut short|metadata must be)"):
            await bring(MemoryStore(), path)
    other = MemoryStore()
    assert (await bring(other, path, on_error="skip")).events == 49
    if format == "jsonl":
        path.write_bytes(whole.rstrip(b"\n"))
        assert (await bring(MemoryStore(), path)).events == 50, "JSON says itself whether it is whole"


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("e.jsonl", b"PAR1....", "is a Parquet file"),
        ("e.csv", b"\x1f\x8b\x08....", "is compressed"),
        ("e.csv", b"PK\x03\x04....", "is a ZIP archive"),
        ("e.csv", "user,action".encode("utf-16"), "UTF-16"),
        ("e.jsonl", b'[{"user": 1}]', "one JSON list; write one object a line"),
        ("e.jsonl", b"a\0b\n", "line 1: holds NUL bytes"),
        ("e.jsonl", b"x" * (MAX_LINE_BYTES + 1), "line 1: longer than"),
        ("e.csv", b"name,price\nshoe,3\n", "line 1: the header lacks user, action, time (it has: name, price)"),
        ("e.csv", b"user,action,time,color\n", "line 1: unknown columns color; there are: id, user"),
        ("e.csv", b"user,action,time,time\n", "line 1: a column is named twice"),
        ("e.txt", b"", "say --format jsonl or --format csv"),
    ],
)
@pytest.mark.parametrize("on_error", ["stop", "skip"])
async def test_a_foreign_file(tmp_path: Path, name: str, content: bytes, told: str, on_error: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInput) as raised:
        await bring(MemoryStore(), tmp_path / name, on_error=on_error)
    assert told in str(raised.value)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("alice,hint", "has 2 cells, and the header 4"),
        (f"alice,hint,{TIME},1,more", "has 5 cells, and the header 4"),
        (f'alice,"hint"x,{TIME},1', "is not CSV"),
        ("alice,hint,,many", "cost must be a whole number"),
        ("alice,hint,,", "time is missing"),
        (f"alice,hint,{RECENT},1_000", "cost must be a whole number"),
        (f"alice,hint,{RECENT},\u0663", "cost must be a whole number"),
        (f"alice,hint,{RECENT},3.0", "cost must be a whole number"),
    ],
)
async def test_bad_lines_of_csv(tmp_path: Path, line: str, told: str) -> None:
    path = tmp_path / "e.csv"
    good = f"alice,hint,{event().at.isoformat()},1"
    path.write_text(f'\ufeffuser,action,time,cost\n{good}\n"al\nice",x,y,z\n{line}\n{good}\n', encoding="utf-8")
    done = await bring(MemoryStore(), path, on_error="skip")
    assert (done.events, done.rejected) == (2, 2)
    first, second = lines_of(tmp_path / "e.csv.rejected")
    assert (first["line"], second["line"]) == (3, 5), "lines of the file, also after a cell of two lines"
    assert told in second["reason"]


async def test_metadata_in_a_cell_that_has_a_name_twice(tmp_path: Path) -> None:
    path = tmp_path / "e.csv"
    path.write_text(f'user,action,time,metadata\nalice,hint,{RECENT},"{{""a"": 1, ""a"": 2}}"\n')
    with pytest.raises(BadLines, match="metadata must be a JSON object"):
        await bring(MemoryStore(), path)


@pytest.mark.parametrize("own", [{"id": "order-17"}, {"id": event().id}])
@pytest.mark.parametrize(
    "other", [{"cost": 5}, {"allowed": False}, {"at": NOON // 1000 - 1}, {"action": "solve"}, {"metadata": {"a": 1}}]
)
async def test_one_id_that_says_two_things_is_bad(tmp_path: Path, own: dict[str, Any], other: dict[str, Any]) -> None:
    """Which of them would count is chance. The same line again is the same event, and another user's is another."""
    path = write(tmp_path / "e.jsonl", row(**own), row(**own), row(user="bob", **other, **own), row(**{**own, **other}))
    with pytest.raises(BadLines, match=f"line 4: id '{own['id']}' is in line 1 already, which says something else"):
        await bring(MemoryStore(), path)
    store = MemoryStore()
    done = await bring(store, path, on_error="skip")
    assert (done.events, done.rejected) == (3, 1)
    assert [(one.user, one.cost) for one in held(store)] == [("alice", 1), ("bob", other.get("cost", 1))]


@pytest.mark.parametrize("own", [{"id": "order-17"}, {"id": event().id}], ids=["given", "made"])
@pytest.mark.parametrize(
    ("other", "differs"),
    [
        ({"cost": 5}, "cost"),
        ({"allowed": False, "status": 429}, "allowed, status"),
        ({"at": NOON // 1000 - 1}, "time"),
        ({"metadata": {"a": 1}}, "metadata"),
    ],
)
async def test_an_id_that_the_table_has_with_other_content_is_bad(
    tmp_path: Path, store: TableStore, user: str, own: dict[str, Any], other: dict[str, Any], differs: str
) -> None:
    """What is in the table stays as it is, in either way; the same line again is the same event."""
    path = tmp_path / "e.jsonl"
    await bring(store, write(path, row(user=user, **own)))
    before = await kept(store, user)
    write(path, row(user=user, **own), row(user=user, **{**own, **other}), row(user=user, id="order-18"))
    path.write_text(path.read_text().split("\n", 1)[1])  # the line that says the same would be told of before the table
    told = f"line 1: id '{own['id']}' is in the table already, with another {differs}; that one stays"
    with pytest.raises(BadLines, match=re.escape(told)) as caught:
        await bring(store, path)
    assert (caught.value.count, caught.value.conflicting) == (1, 1)
    assert await kept(store, user) == before
    done = await bring(store, path, on_error="skip")
    assert (done.events, done.rejected, done.conflicting, done.first_rejected) == (1, 1, 1, [told])
    (line,) = lines_of(tmp_path / "e.jsonl.rejected")
    assert told == f"line {line['line']}: {line['reason']}"
    assert [one for one in await kept(store, user) if one.id != "order-18"] == before


async def test_the_first_few_bad_lines_are_named(tmp_path: Path) -> None:
    store, path = MemoryStore(), tmp_path / "e.jsonl"
    await bring(store, write(path, *(row(id=f"order-{number}") for number in range(7))))
    write(path, "{", *(row(id=f"order-{number}", cost=3) for number in range(7)))
    told = "line 1: is not JSON.* \\(and 7 more lines are bad, 7 of all conflict with the table: 2, 3, 4, 5, …\\)"
    with pytest.raises(BadLines, match=told):
        await bring(store, path)
    done = await bring(store, path, on_error="skip")
    assert (done.events, done.rejected, done.conflicting, len(done.first_rejected)) == (0, 8, 7, 5)


async def test_only_lines_that_have_an_id_are_looked_for(tmp_path: Path) -> None:
    store, events = scripted()
    await bring(store, write(tmp_path / "e.jsonl", *(row(at=NOON // 1000 - number) for number in range(30))))
    assert events.looked_for == 0
    await bring(store, write(tmp_path / "e.jsonl", *(row(id=f"order-{number}") for number in range(30))))
    assert events.looked_for == 30


async def test_a_time_in_two_forms_that_agree_is_one(tmp_path: Path) -> None:
    store = MemoryStore()
    await bring(store, write(tmp_path / "e.jsonl", row(time=event().at.isoformat())))
    assert [one.at_ms for one in store.events] == [NOON // 1000]


async def test_an_empty_text_is_not_nothing(tmp_path: Path) -> None:
    """Also what an earlier export has: there nothing at all stands in the cell of either."""
    store, other, path = MemoryStore(), MemoryStore(), tmp_path / "e.csv"
    made = [event(resource=text, at_ms=NOON // 1000 - n) for n, text in enumerate(("", None, "'", "''", "'="))]
    await fill(store.events, made)
    await to_file(store, path, "csv")
    await bring(other, path)
    assert [one.resource for one in reversed(held(other))] == ["", None, "'", "''", "'="]


async def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    for name, good in (("e.jsonl", json.dumps(row())), ("e.csv", f"alice,hint,{NOON // 1000}")):
        head = "user,action,at\n" if name == "e.csv" else ""
        (tmp_path / name).write_bytes(head.encode() + good.replace("alice", "j\xfcrgen").encode("latin-1") + b"\n")
        with pytest.raises(BadLines, match="is not UTF-8 at byte"):
            await bring(MemoryStore(), tmp_path / name)


async def test_nothing_to_import(tmp_path: Path) -> None:
    for name in ("e.jsonl", "e.csv"):
        (tmp_path / name).touch()
        assert await bring(MemoryStore(), tmp_path / name) == Imported()
    with pytest.raises(FileNotFoundError):
        await bring(MemoryStore(), tmp_path / "missing.csv")


async def test_every_event_arrives_through_a_store_that_falters(tmp_path: Path, pauses: list[float]) -> None:
    store, events = scripted()
    path = write(tmp_path / "e.jsonl", *(row(user=one.user, at=one.at_ms, id=one.id) for one in many(1000)))
    events.line.extend([down, half, answer_lost, half, down, answer_lost, half] * 5)
    heard: list[tuple[int, int]] = []
    done = await bring(store, path, progress=lambda count, size: heard.append((count, size)))
    assert (done.events, len(events)) == (1000, 1000)
    assert heard[-1] == (1000, path.stat().st_size)
    assert events.most_at_once == 8


async def test_a_store_that_stays_away_is_an_error(tmp_path: Path, pauses: list[float]) -> None:
    store, events = scripted()
    path = write(tmp_path / "e.jsonl", row())
    events.always = down
    with pytest.raises(StoreUnavailable, match="down"):
        await bring(store, path)

    async def throttled(_: object, batch: Any) -> Any:
        return batch

    events.always = throttled
    with pytest.raises(StoreThrottled, match="the same command goes on later"):
        await bring(store, path)
