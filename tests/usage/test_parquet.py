"""Parquet: what goes out, what of others comes in, and what is said of everything else."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from ratelimit import ConfigError, InvalidInput, MemoryStore
from ratelimit.usage.export import ExportQuery, export_events
from ratelimit.usage.formats import COLUMNS
from ratelimit.usage.parquet import ParquetFile
from tests.usage.files import (
    CLOCK,
    NOON,
    Interrupted,
    InterruptedStore,
    event,
    fill,
    many,
    rest_of,
)
from tests.usage.test_importing import RECENT, TIME, bring


async def test_events_come_out_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ratelimit.usage.parquet.ROW_GROUP", 1000)
    store, path = MemoryStore(), tmp_path / "events.parquet"
    made = many(2500)
    await fill(store.events, made)
    done = await export_events(store, ExportQuery(store="s", format="parquet"), ParquetFile(path), clock=CLOCK)
    table = pyarrow.parquet.read_table(path)
    assert tuple(table.column_names) == COLUMNS
    assert (table.num_rows, done.events, done.bytes) == (2500, 2500, path.stat().st_size)
    rows = {row["id"]: row for row in table.to_pylist()}
    for one in made:
        row = rows[one.id]
        assert (row["user"], row["cost"], row["allowed"], row["status"]) == (
            one.user,
            one.cost,
            one.allowed,
            one.status,
        )
        assert row["time"] == one.at
    assert pyarrow.parquet.ParquetFile(path).num_row_groups == 3
    assert rest_of(path) == []


async def test_an_export_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    store = InterruptedStore()
    await fill(store.events, many(1500))
    store.scanner.pages = 1
    with pytest.raises(Interrupted):
        await export_events(
            store, ExportQuery(store="s", format="parquet"), ParquetFile(tmp_path / "events.parquet"), clock=CLOCK
        )
    assert list(tmp_path.iterdir()) == []


def test_without_pyarrow_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ConfigError, match="pip install 'ratelimit-dynamodb\\[parquet\\]'"):
        ParquetFile(tmp_path / "events.parquet")


PARQUET_ROW = {"user": ["alice"], "action": ["hint"]}


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"user": ["alice"], "when": [1]}, "the header lacks action, time (it has: user, when)"),
        ({**PARQUET_ROW, "time": [datetime(2026, 1, 5)]}, "the column time has no time zone"),
        ({**PARQUET_ROW, "time": [TIME], "color": ["red"]}, "unknown columns color"),
        ({**PARQUET_ROW, "time": [RECENT], "cost": [2.5]}, "line 1: cost must be a whole number"),
        ({**PARQUET_ROW, "time": [event().at], "at": [5]}, "line 1: time "),
        ({**PARQUET_ROW, "time": [RECENT], "metadata": ["x"]}, "line 1: metadata must be a JSON object"),
    ],
)
async def test_files_of_somebody_else(tmp_path: Path, columns: dict[str, list[Any]], told: str) -> None:
    path = tmp_path / "e.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    with pytest.raises(InvalidInput) as raised:
        await bring(MemoryStore(), path)
    assert told in str(raised.value)


async def test_other_types_of_the_columns(tmp_path: Path) -> None:
    """Times of nanoseconds, as pandas has them, or as text; metadata as a structure."""
    store, path = MemoryStore(), tmp_path / "e.parquet"
    columns = {
        "user": pyarrow.array(["alice", "alice"]).dictionary_encode(),
        "action": ["hint", "hint"],
        "time": pyarrow.array([NOON * 1000 + 1, NOON * 1000 + 999_999], pyarrow.timestamp("ns", tz="Europe/Berlin")),
        "metadata": [{"a": 1}, {"a": 2}],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    assert (await bring(store, path)).events == 2
    assert [(one.at_ms, one.metadata) for one in store.events] == [(NOON // 1000, {"a": 1}), (NOON // 1000, {"a": 2})]


@pytest.mark.parametrize("content", [b"PAR1 and no end", b"", b"user,action\n"])
async def test_a_file_that_is_no_parquet(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "e.parquet").write_bytes(content)
    with pytest.raises(InvalidInput, match="is no Parquet file that can be read"):
        await bring(MemoryStore(), tmp_path / "e.parquet")
