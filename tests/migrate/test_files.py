"""Nothing that a file says is passed over in silence."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ratelimit.errors import InvalidInput
from ratelimit.migrate import dry_run, files, json_stream
from tests.migrate.plans import bring, check, events_in, plan_of, record_in, unheard

NOW = datetime.now(UTC)


def row(number: int | None, **changes: Any) -> dict[str, Any]:
    at = NOW - timedelta(minutes=1 + (number or 0) % 50)
    return {"id": number, "user_id": "u", "action": "hint", "created_at": at.isoformat(), **changes}


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(one) + "\n" for one in rows)


async def test_all_files_of_a_folder_that_are_about_the_same_are_read(table: str, tmp_path: Path) -> None:
    folder = tmp_path / "dump"
    folder.mkdir()
    (folder / "history.jsonl").write_text(lines([row(1)]))
    (folder / "usage_log.jsonl").write_text(lines([row(n) for n in range(2, 20)]))
    (folder / "usage_logs.json").write_text(json.dumps([row(n) for n in range(20, 30)]))
    asked = plan_of(folder, table, tmp_path, batch_size=5)
    behind: list[tuple[int, int | None]] = []
    await dry_run(asked, listener=lambda entity, counts, done, size: behind.append((done, size)))
    assert behind == sorted(behind, key=lambda each: each[0])
    assert behind[-1][0] == behind[-1][1]
    assert (await bring(asked)).checkpoint.of("events").written == 29
    assert len(list(folder.glob("*.backup-*"))) == 3
    assert sum(v for f, v in (await record_in(table, "u", "hint")).items() if f[0] == "u" and len(f) == 5) == 29
    assert (await check(asked)).same


async def test_all_sections_that_are_about_the_same_are_read(table: str, tmp_path: Path) -> None:
    path = tmp_path / "dump.json"
    path.write_text(json.dumps({"history": [row(1)], "usage_log": {"2": row(2), "3": row(3)}, "other": [1]}))
    done = await bring(plan_of(path, table, tmp_path))
    assert done.checkpoint.of("events").written == 3
    assert done.notes == ["left alone, as they hold no usage: other"]


@pytest.mark.parametrize("behind", ["\n[{}]", "}} oops", "]"])
@pytest.mark.parametrize("document", [[row(1), row(2)], {"1": row(1)}, {"usage_log": [row(1)]}])
async def test_text_behind_the_document_is_refused(document: Any, behind: str, table: str, tmp_path: Path) -> None:
    path = tmp_path / "usage_log.json"
    path.write_text(json.dumps(document, indent=1) + behind)
    with pytest.raises(InvalidInput, match=r"usage_log.json: not JSON at character \d+: the end was expected"):
        await bring(plan_of(path, table, tmp_path))


@pytest.mark.parametrize("nothing", [None, ""])
async def test_rows_whose_id_is_null_are_several_uses(nothing: Any, table: str, tmp_path: Path) -> None:
    path = tmp_path / "usage_log.jsonl"
    path.write_text(lines([row(None, id=nothing)] * 3))
    for written in (3, 0):
        assert (await bring(plan_of(path, table, tmp_path))).checkpoint.of("events").written == written
    assert len(await events_in(table)) == 3


@pytest.mark.parametrize("name", ["usage_log.jsonl", "usage_log.json"])
async def test_a_row_that_is_too_long_is_set_aside(
    name: str, table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_stream, "MAX_ELEMENT", 200_000)
    monkeypatch.setattr(files, "MAX_ELEMENT", 200_000)
    rows = [row(n, metadata={"code": "x" * size}) for n, size in enumerate((5, 70_000, 900_000, 5))]
    path = tmp_path / name
    path.write_text(lines(rows) if name.endswith("l") else json.dumps(rows))
    done = await bring(plan_of(path, table, tmp_path))
    counts = done.checkpoint.of("events")
    assert (counts.written, counts.rejected) == (3, 1)
    assert done.rejects is not None
    (kept,) = map(json.loads, Path(done.rejects).read_text().splitlines())
    assert kept["row"] in ("usage_log.jsonl line 3", "usage_log.json [3]")
    assert "is longer than 200000" in kept["reason"]


@pytest.mark.parametrize("name", ["usage_log.jsonl", "usage_log.json"])
async def test_a_row_that_python_cannot_read_is_set_aside(name: str, table: str, tmp_path: Path) -> None:
    deep = '{"user_id": ' + "[" * 5000 + "]" * 5000 + "}"
    long = '{"user_id": ' + "9" * 5000 + "}"
    twice = json.dumps(row(3)).replace("{", '{"user_id": "mallory", ', 1)
    rows = [json.dumps(row(1)), deep, long, twice, json.dumps(row(2))]
    path = tmp_path / name
    path.write_text("\n".join(rows) if name.endswith("l") else "[" + ",".join(rows) + "]")
    asked = plan_of(path, table, tmp_path)
    forecast = await dry_run(asked, listener=unheard)
    for counts in (forecast.counts["events"], (await bring(asked)).checkpoint.of("events")):
        assert (counts.written, counts.rejected) == (2, 3)


async def test_cells_with_spaces_around_them_are_what_they_say(table: str, tmp_path: Path) -> None:
    """As a database prints them, or one whose columns are of a fixed width."""
    at = NOW.strftime("%Y-%m-%d %H:%M:%S")
    (tmp_path / "usage_log.csv").write_text(
        f"id, user_id, action, created_at, cost\n1, alice, hint, {at}, 2\n2,alice   ,hint  ,{at} ,3\n"
        f"3,\\N,hint,{at},1\n4,alice,\\N,{at},1\n5,bob,hint,{at},\\N\n"
    )
    counts = (await bring(plan_of(tmp_path, table, tmp_path))).checkpoint.of("events")
    assert (counts.written, counts.rejected) == (3, 2)  # what is null has no user, or no action
    assert sorted((one.user, one.action, one.cost) for one in await events_in(table)) == [
        ("alice", "hint", 2),
        ("alice", "hint", 3),
        ("bob", "hint", 1),
    ]
