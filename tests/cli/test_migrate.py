"""`ratelimit migrate`: what it prints, what it leaves, and the status it ends with."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from ratelimit.cli.progress import Speed
from ratelimit.testing import FakeClock
from tests.cli.command import Command
from tests.engines import Engine
from tests.migrate.sources import to_sqlite
from tests.migrate.world import World


@pytest.fixture
def store(engine: Engine, ratelimit: Command) -> str:
    url = engine.store_url(f"migrate-{uuid4().hex[:8]}")
    assert ratelimit("table", "create", "--store", url).status == 0
    return url


def test_dry_run_run_and_verify(ratelimit: Command, store: str, tmp_path: Path) -> None:
    source = to_sqlite(World(users=4, rows=20), tmp_path / "app.db")
    options = ("--store", store, "--work-dir", str(tmp_path))
    dry = ratelimit("migrate", source, "--dry-run", "--rate", "10", *options)
    assert dry.status == 0, dry.err
    assert "nothing was written" in dry.out
    assert re.search(r"events +20 +20 +0 +0", dry.out)
    assert re.search(r"estimate: (\d+) write units, 0.00 USD on demand, \d+ s at 10 units a second", dry.out)
    assert "note: left alone, as they hold no usage: session" in dry.err
    done = ratelimit("migrate", source, *options)
    assert done.status == 0, done.err
    assert re.search(r"events +20 +20 +0 +0 +0 +0", done.out)
    assert re.search(r"^events: (0 %, 0 read, 0 written|100 %, 20 read, 20 written)", done.err, re.MULTILINE)
    verdict = ratelimit("migrate", "verify", source, *options)
    assert (verdict.status, verdict.out.count("all of it is there")) == (0, 1)


def test_rejected_rows_and_json(ratelimit: Command, store: str, tmp_path: Path) -> None:
    rows = [
        {"user_id": 1, "action": "hint", "created_at": datetime.now(UTC).isoformat()},
        {"user_id": None, "action": "hint", "created_at": 5},
    ]
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = ("migrate", str(path), "--entity", "events", "--store", store, "--work-dir", str(tmp_path))
    shown = ratelimit(*args)
    assert shown.status == 1
    assert "1 rejected: user is missing" in shown.out
    assert "with the reasons" in shown.err
    again = ratelimit(*args, "--json")
    assert again.status == 1
    assert again.json["counts"]["events"] == {
        "read": 2, "written": 0, "there": 1, "kept": 0, "expired": 0, "rejected": 1, "reasons": {"user is missing": 1},
    }  # fmt: skip
    assert Path(again.json["rejects"]).read_text().count("\n") == 1
    verdict = ratelimit("migrate", "verify", *args[1:], "--json")
    assert (verdict.status, verdict.json["entities"]["events"]["missing"]) == (0, 0)


def test_counters_wait_for_rejected_rows(ratelimit: Command, store: str, tmp_path: Path) -> None:
    at = (datetime.now(UTC) - timedelta(minutes=1)).isoformat()
    path = tmp_path / "usage_log.jsonl"
    path.write_text(
        "".join(json.dumps({"id": 1, "user_id": user, "action": "hint", "created_at": at}) + "\n" for user in ("a", ""))
    )
    args = ("migrate", str(path), "--store", store, "--work-dir", str(tmp_path))
    for option, written in (("--dry-run", 0), ("--backup", 0), ("--leave-rejected", 1)):
        result = ratelimit(*args, option, "--json")
        assert (result.status, result.json["counts"]["counters"]["written"]) == (1, written)
        assert any("add --leave-rejected" in note for note in result.json["notes"]) is not bool(written)
    assert "note: no counters are written while rows of use are rejected, 1 by now" in ratelimit(*args).err


def test_what_is_asked_for_wrongly(ratelimit: Command, store: str, tmp_path: Path) -> None:
    source = to_sqlite(World(users=1, rows=1), tmp_path / "app.db")
    for args, told in (
        ((source, "--entity", "sessions"), "has no sessions (it has: plans, users, events, counters)"),
        ((source, "--rate", "0"), "--rate must be"),
        ((source, "--batch-size", "0"), "--batch-size must be"),
        ((source, "--mapping", str(tmp_path / "none.toml")), "--mapping: cannot read"),
        ((str(tmp_path / "none.json"),), "there is no"),
        ((f"sqlite:///{tmp_path}/none.db",), "unable to open"),
    ):
        result = ratelimit("migrate", *args, "--store", store, "--work-dir", str(tmp_path))
        assert (result.status, told in result.err) == (2, True), result.err
    assert ratelimit("migrate", source, "--store", "memory://").status == 2


def test_a_table_that_cannot_be_reached(ratelimit: Command, tmp_path: Path) -> None:
    source = to_sqlite(World(users=1, rows=1), tmp_path / "app.db")
    nowhere = "dynamodb://limits?region=eu-west-1&endpoint=http://127.0.0.1:9"
    result = ratelimit("migrate", source, "--store", nowhere, "--work-dir", str(tmp_path))
    assert result.status == 3
    assert "the same command goes on where it stopped" in result.err


def test_undo_and_replace(ratelimit: Command, store: str, tmp_path: Path) -> None:
    at = (datetime.now(UTC) - timedelta(hours=3)).isoformat()
    rows = [{"id": n, "user_id": 1, "action": "hint", "created_at": at, "units": 3} for n in (1, 2)]
    (tmp_path / "usage_log.json").write_text(json.dumps(rows))
    options = ("--store", store, "--work-dir", str(tmp_path))
    args = (str(tmp_path / "usage_log.json"), "--no-backup", *options)
    run = ratelimit("migrate", *args, "--json").json["run"]
    mapping = tmp_path / "mapping.toml"
    mapping.write_text('[events]\ncost = "unit"\n')
    corrected = (*args, "--mapping", str(mapping))
    wrong = ratelimit("migrate", *corrected)
    assert (wrong.status, "no field 'unit'; did you mean 'units'?" in wrong.err) == (2, True), wrong.err
    mapping.write_text('[events]\ncost = "units"\n')
    refused = ratelimit("migrate", *corrected)
    assert refused.status == 2
    assert f"--replace {run}" in refused.err
    assert "events.cost: cost before, units now" in refused.err
    forecast = ratelimit("migrate", *corrected, "--dry-run", "--replace", run)
    assert f"of run {run} would be taken back first" in forecast.err
    done = ratelimit("migrate", *corrected, "--replace", run)
    assert done.status == 0, done.err
    (second,) = re.findall(r"this was run (\S+);", done.out)
    shown = ratelimit("migrate", "undo", second, "--dry-run", *options)
    assert (shown.status, "nothing was taken back" in shown.out) == (0, True)
    undone = ratelimit("migrate", "undo", second, *options, "--json")
    assert undone.json["taken_back"] == {"plans": 0, "users": 0, "events": 2, "counters": 1}
    assert ratelimit("migrate", "undo", "nonsense", *options).status == 2


def test_the_mapping_that_is_printed_is_the_one_that_holds(ratelimit: Command, tmp_path: Path) -> None:
    from ratelimit.migrate.mapping import Mapping, read_mapping

    printed = ratelimit("migrate", "mapping")
    path = tmp_path / "mapping.toml"
    path.write_text(printed.out)
    assert replace(read_mapping(path), given=()) == Mapping()
    path.write_text(path.read_text().replace('"problem_id"', '"puzzle"'))
    assert ratelimit("migrate", "mapping", "--mapping", str(path)).out == path.read_text()


def test_the_rate_and_the_time_left() -> None:
    clock = FakeClock()
    speed = Speed(clock)
    assert speed.hear("events", 0, 0, 1000) == ("", "")
    clock.advance(10)
    assert speed.hear("events", 200, 200, 1000) == ("20/s", "40 s left")
    assert speed.hear("counters", 0, 0, None) == ("", "")
    clock.advance(2)
    assert speed.hear("counters", 10, 10, None) == ("5/s", "")
