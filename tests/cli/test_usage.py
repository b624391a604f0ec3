"""`ratelimit usage ...`: what people read and programs parse, on a real engine; and what is said of bad input."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from ratelimit import Limiter, Policy, UsageLog, open_store
from ratelimit.config import masked
from ratelimit.usage.export import ExportQuery, File, export_events
from ratelimit.usage.formats import Csv
from tests.cli.command import Command, Terminal
from tests.engines import Engine
from tests.usage.files import Interrupted, InterruptedStore, killed

NOW = datetime.now(UTC)
LONG_AGO = (NOW - timedelta(days=200)).date().isoformat()


def today() -> str:
    return datetime.now(UTC).date().isoformat()


@pytest.fixture
def url(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> str:
    """A table with a little use in it, which is the configured one."""
    url = engine.store_url(f"cli-{uuid4().hex[:8]}", create="true")
    asyncio.run(use(url))
    monkeypatch.setenv("RATELIMIT_STORE", url)
    return url


async def use(url: str) -> None:
    async with open_store(url) as store, UsageLog(store) as usage:
        limiter = Limiter(store, [Policy("hint", "100/day"), Policy("solve", "100/day")])
        for user, action, cost in (
            ("alice", "hint", 2),
            ("alice", "hint", 3),
            ("alice", "solve", 1),
            ("bob", "hint", 9),
        ):
            await limiter.check(user, action, cost=cost)
            await usage.record(user, action, cost=cost, resource=f"=problem-{cost}")
        await usage.record("alice", "hint", allowed=False, status=429)


def test_events(ratelimit: Command, url: str) -> None:
    status, out, err = ratelimit("usage", "events", "alice")
    assert (status, err) == (0, "")
    assert out.count("hint") == 3
    assert "denied" in out
    denied = ratelimit("usage", "events", "alice", "--denied", "--action", "hint", "--since", today(), "--json").json
    assert [(one["user"], one["allowed"], one["status"]) for one in denied["events"]] == [("alice", False, 429)]
    assert denied["cursor"] is None


def test_events_page_by_page(ratelimit: Command, url: str) -> None:
    first = ratelimit("usage", "events", "alice", "--limit", "3", "--json").json
    rest = ratelimit("usage", "events", "alice", "--limit", "3", "--cursor", first["cursor"], "--json").json
    assert (len(first["events"]), len(rest["events"]), rest["cursor"]) == (3, 1, None)
    told = ratelimit("usage", "events", "alice", "--limit", "3").err
    assert told.startswith("note: there may be more: repeat the command with --cursor ")
    status, out, err = ratelimit("usage", "events", "bob", "--cursor", first["cursor"])
    assert (status, out) == (2, "")
    assert err.startswith("error: the cursor is from another query")


def test_summary_and_totals(ratelimit: Command, url: str) -> None:
    summary = ratelimit("usage", "summary", "alice", "--days", "5", "--json").json
    assert summary["hint"] == {"total": 5, "daily_avg": 1.0}
    assert summary["date_range"][1] == today()
    assert "daily average" in ratelimit("usage", "summary", "alice").out
    assert ratelimit("usage", "totals", "alice", "--json").json == {"hint": {today(): 5}, "solve": {today(): 1}}
    assert today() in ratelimit("usage", "totals", "alice", "--since", "yesterday", "--action", "solve").out
    month = f"{today()[:7]}-01"
    monthly = ("usage", "totals", "alice", "--per", "month")
    assert ratelimit(*monthly, "--json").json == {"hint": {month: 5}, "solve": {month: 1}}
    assert month in ratelimit(*monthly).out


def test_top(ratelimit: Command, url: str) -> None:
    line = ("usage", "top", "--day", "today", "--action", "hint")
    assert ratelimit(*line, "--json").json == [{"user": "bob", "total": 9}, {"user": "alice", "total": 5}]
    assert ratelimit(*line, "--count", "1").out.count("alice") == 0
    assert ratelimit("usage", "top", "--day", today(), "--action", "nap").out.startswith("nobody used nap on ")
    assert "READS THE WHOLE TABLE" in ratelimit("usage", "top", "--help").out


def test_reconcile(ratelimit: Command, url: str) -> None:
    found = ratelimit("usage", "reconcile", "alice", "--day", today(), "--json").json
    assert found["hint"] == {"events": 5, "total": 5, "difference": 0}
    assert "difference" in ratelimit("usage", "reconcile", "alice", "--day", "today").out


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (("events", "nobody"), "no events of nobody in this range, or no such user"),
        (("summary", "nobody"), "nobody has used nothing from "),
        (("totals", "nobody"), "nobody has used nothing in these days, or is not known"),
        (("reconcile", "nobody", "--day", "today"), "nobody has neither events nor totals on "),
        (("erase", "nobody", "--yes"), "nobody: nothing to erase"),
    ],
)
def test_an_unknown_user_is_said_plainly(ratelimit: Command, url: str, line: tuple[str, ...], told: str) -> None:
    status, out, err = ratelimit("usage", *line)
    assert (status, "error" in err) == (0, False)
    assert out.startswith(told)


@pytest.mark.parametrize("line", [("totals", "carol"), ("summary", "carol"), ("reconcile", "carol", "--day", "today")])
def test_actions_that_nothing_names_are_not_said_to_be_unused(
    ratelimit: Command, url: str, line: tuple[str, ...], tmp_path: Path
) -> None:
    assert ratelimit("check", "carol", "lone", "--quota", "5/day")[0] == 0
    assert ratelimit("usage", *line).err.startswith("note: no policies are configured (--config FILE)")
    file = tmp_path / "ratelimit.toml"
    file.write_text('[policies.lone]\nquotas = "5/day"\n')
    status, out, err = ratelimit("usage", *line, "--config", str(file))
    assert (status, "lone" in out, err) == (0, True, "")


@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_out_and_in_again(ratelimit: Command, url: str, engine: Engine, tmp_path: Path, format: str) -> None:
    file = tmp_path / f"events.{format}"
    status, out, err = ratelimit("usage", "export", "--out", str(file))
    assert (status, err) == (0, "")
    assert out == f"5 events in {file} ({file.stat().st_size:,} bytes)\n"
    other = engine.store_url(f"cli-{uuid4().hex[:8]}", create="true")
    for _ in range(2):
        result = ratelimit("usage", "import", str(file), "--store", other)
        assert result == (0, f"5 events of {file} are in the table\n", "")
    mine, theirs = (ratelimit("usage", "events", "alice", "--store", one, "--json").json for one in (url, other))
    assert mine == theirs
    assert theirs["events"][-1]["resource"] == "=problem-2"


def test_export_to_standard_output(url: str) -> None:
    line = [sys.executable, "-m", "ratelimit", "usage", "export", "--store", url, "--user", "alice"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=240, check=True)
    assert [json.loads(one)["user"] for one in done.stdout.splitlines()] == ["alice"] * 4
    assert done.stderr == ""


@pytest.mark.parametrize("kind", ["pipe", "stdout", "link"])
def test_export_to_what_is_no_file_of_its_own(kind: str, url: str, tmp_path: Path) -> None:
    """A file in the place of a pipe, or of a link, would reach nobody: a root user's `/dev/stdout` was gone."""
    file, out = tmp_path / "events.jsonl", tmp_path / kind
    if kind == "pipe":
        os.mkfifo(out)
    else:
        file.write_text("of yesterday\n", encoding="utf-8")
        out.symlink_to("/dev/stdout" if kind == "stdout" else file)
    line = [sys.executable, "-m", "ratelimit", "usage", "export", "--store", url, "--user", "alice", "--out", str(out)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as done:
        read = out.read_text(encoding="utf-8") if kind == "pipe" else ""
        said, err = done.communicate(timeout=240)
    assert (done.returncode, err) == (0, "")
    text = {"pipe": read, "stdout": said, "link": file.read_text(encoding="utf-8") if file.exists() else ""}[kind]
    assert sum(one.startswith('{"id"') for one in text.splitlines()) == 4
    assert out.is_fifo() if kind == "pipe" else out.is_symlink()


def test_export_where_no_file_can_be(ratelimit: Command, url: str, tmp_path: Path) -> None:
    assert ratelimit("usage", "export", "--store", url, "--out", str(tmp_path)) == (
        2, "", f"error: --out: {tmp_path} is a folder; name a file in it\n"
    )  # fmt: skip
    out = tmp_path / "none" / "events.csv"
    told = f"error: --out: there is no folder {out.parent}\n"
    assert ratelimit("usage", "export", "--store", url, "--out", str(out)) == (2, "", told)


def test_a_pipe_is_not_imported(ratelimit: Command, url: str, tmp_path: Path) -> None:
    """It is read twice: all of it is looked at before anything is written."""
    os.mkfifo(pipe := tmp_path / "events.jsonl")
    for command in (("usage", "import"), ("migrate", "run")):
        status, out, err = ratelimit(*command, str(pipe), "--store", url)
        assert (status, out) == (2, "")
        assert f"{pipe} is no file, and is read more than once; write it into one first" in err


def test_export_with_options(ratelimit: Command, url: str, tmp_path: Path) -> None:
    file = tmp_path / "events.parquet"
    line = ("usage", "export", "--out", str(file), "--action", "hint", "--allowed", "--parts", "3", "--json")
    report = ratelimit(*line, "--since", today(), "--until", today()).json
    assert (report["events"], report["format"]) == (3, "parquet")
    assert file.read_bytes()[:4] == b"PAR1"


def test_an_export_that_was_interrupted(ratelimit: Command, url: str, tmp_path: Path) -> None:
    file = tmp_path / "events.csv"
    line = ("usage", "export", "--out", str(file))
    assert ratelimit(*line, "--resume").err.startswith(
        f"error: there is no {file}.checkpoint, so nothing to go on with"
    )
    store = InterruptedStore()
    store.scanner.pages = 0
    with pytest.raises(Interrupted):
        asyncio.run(export_events(store, ExportQuery(store=masked(url), format="csv"), File(file, Csv(), resume=False)))
    for options, told in (((), "was not finished; add --resume"), (("--resume", "--denied"), "is of another export")):
        status, out, err = ratelimit(*line, *options)
        assert (status, out) == (2, "")
        assert told in err
    status, out, _ = ratelimit(*line, "--resume")
    assert (status, out.startswith(f"5 events in {file}")) == (0, True)
    assert len(file.read_text(encoding="utf-8").splitlines()) == 6


def test_import_with_bad_lines(ratelimit: Command, url: str, tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    good = {"user": "carol", "action": "hint", "time": NOW.isoformat()}
    file.write_text(f"{json.dumps(good)}\n{{\n", encoding="utf-8")
    status, out, err = ratelimit("usage", "import", str(file))
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {file}, line 2: is not JSON")
    assert err.count("\n") == 1
    status, out, err = ratelimit("usage", "import", str(file), "--on-error", "skip")
    assert (status, out) == (1, f"1 events of {file} are in the table\n")
    assert err.startswith(
        f"note: 1 lines were rejected; they are in {file}.rejected, with the reasons\nnote: line 2: is not"
    )
    assert len(ratelimit("usage", "events", "carol", "--json").json["events"]) == 1


def test_import_of_what_the_table_has_with_other_content(ratelimit: Command, url: str, tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    line = {"user": "dora", "action": "hint", "time": NOW.isoformat(), "id": "order-17"}
    file.write_text(json.dumps(line), encoding="utf-8")
    assert ratelimit("usage", "import", str(file)).status == 0
    file.write_text(json.dumps({**line, "cost": 5}), encoding="utf-8")
    told = "line 1: id 'order-17' is in the table already, with another cost; that one stays"
    status, _, err = ratelimit("usage", "import", str(file))
    assert (status, err) == (2, f"error: {file}, {told}; nothing was written, --on-error skip takes the others\n")
    status, _, err = ratelimit("usage", "import", str(file), "--on-error", "skip")
    assert status == 1
    assert "1 lines were rejected (1 conflict with what is in the table)" in err
    assert f"note: {told}\n" in err
    done = ratelimit("usage", "import", str(file), "--on-error", "skip", "--json").json
    assert (done["events"], done["rejected"], done["conflicting"]) == (0, 1, 1)
    assert [event["cost"] for event in ratelimit("usage", "events", "dora", "--json").json["events"]] == [1]


def test_erase(ratelimit: Command, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    ratelimit("user", "set", "alice", "--email", "alice@example.com")
    assert ratelimit("usage", "erase", "alice").status == 1
    found = {"events": 4, "counters": 2, "entries": 1, "identities": 1}
    told = {"user": "alice", "erased": 6 + 2, "found": found, "left": []}
    assert ratelimit("usage", "erase", "alice", "--yes", "--json").json == told
    assert ratelimit("usage", "events", "alice", "--json").json["events"] == []
    assert ratelimit("user", "show", "alice").status == 2
    assert ratelimit("user", "show", "--email", "alice@example.com").status == 2
    assert ratelimit("usage", "totals", "bob", "--json").json == {"hint": {today(): 9}}


def test_erase_says_where_it_looked_and_what_it_found(
    ratelimit: Command, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ratelimit("check", "alice", "once", "--quota", "5/day")
    quick = ratelimit("usage", "erase", "alice", "--yes", "--quick").out
    assert quick == (
        "alice: 6 items erased (counters 2, events 4); found by key, the rest of the table was not read (--quick), "
        "no journal\n"
    )
    killed(tmp_path)
    monkeypatch.setenv("RATELIMIT_USAGE", f"journal:{tmp_path}")
    assert ratelimit("usage", "erase", "alice", "--yes").out == (
        "alice: 21 items erased (counters 1, events in the journal 20); the whole table was read, "
        f"and the journal in {tmp_path}\n"
    )
    bob = ratelimit("usage", "events", "bob", "--json").json["events"]
    assert len(bob) == 1 + 20, "what others have in a dead process's journal is written"
    assert ratelimit("usage", "events", "alice", "--json").json["events"] == []
    nothing = ratelimit("usage", "erase", "alice", "--yes", "--journal", str(tmp_path))
    assert (nothing.status, nothing.err) == (0, "")
    assert nothing.out.startswith("alice: nothing to erase; the whole table was read, and the journal in ")
    monkeypatch.setenv("RATELIMIT_USAGE", f"journal:{tmp_path / 'y'}")
    assert f"there is no journal:{tmp_path / 'y'} here" in ratelimit("usage", "erase", "alice", "--yes").err
    missing = ratelimit("usage", "erase", "alice", "--yes", "--journal", str(tmp_path / "x"))
    assert (missing.status, missing.out) == (2, "")


def test_erase_leaves_a_damaged_file_to_a_person(ratelimit: Command, url: str, tmp_path: Path) -> None:
    (tmp_path / "1-000001.journal.damaged").write_bytes(b'..."user":"alice"...')
    status, _, err = ratelimit("usage", "erase", "alice", "--yes", "--journal", str(tmp_path))
    assert status == 1
    assert "1-000001.journal.damaged is damaged" in err


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (("events", "alice", "--since", "5.1.2026"), "--since: '5.1.2026' is no date; write 2026-01-05, or 2026"),
        (("events", "alice", "--since", "2026-02-30"), "--since: '2026-02-30' is no"),
        (("events", "alice", "--until", "20261120"), "--until: '20261120' is no date; write 2026-01-05"),
        (("events", "alice", "--until", "2026-W47-5"), "--until: '2026-W47-5' is no date"),
        (("events", "alice", "--until", "9999-12-31"), "--until: '9999-12-31' is no date"),
        (("events", "alice", "--since", "9999-12-31T23:59:59-05:00"), "is no date"),
        (("events", "alice", "--since", LONG_AGO), "events are kept for 90 days"),
        (("events", "alice", "--until", LONG_AGO), "events are kept for 90 days"),
        (("events", "alice", "--limit", "0"), "limit must be a whole number from 1 to 1000"),
        (("events", "alice", "--cursor", "x"), "the cursor is damaged"),
        (("events", ""), "the user is empty"),
        (("summary", "alice", "--days", "36"), "totals are kept for 35 days"),
        (("totals", "alice", "--since", "2026-01-05T12:00"), "is no day; write 2026-01-05, today or yesterday"),
        (("totals", "alice", "--since", LONG_AGO), "totals are kept for 35 days"),
        (("totals", "alice", "--per", "month", "--since", "2019-01-05"), "totals are kept for 13 months"),
        (("totals", "alice", "--per", "week"), "'week' is not one of 'day', 'month'"),
        (("top", "--day", "tomorrow", "--action", "hint"), "--day: 'tomorrow' is no day"),
        (("top", "--day", LONG_AGO, "--action", "hint"), "totals are kept for 35 days"),
        (("reconcile", "alice", "--day", LONG_AGO), "totals are kept for 35 days"),
        (("export", "--format", "xml"), "'xml' is not one of 'jsonl', 'csv', 'parquet'"),
        (("export", "--resume"), "--resume: standard output cannot be gone on with"),
        (("export", "--out", "x.parquet", "--resume"), "--resume: a Parquet file cannot be gone on with"),
        (("export", "--format", "parquet"), "Parquet needs a file; add --out events.parquet"),
        (("export", "--out", "missing/x.csv"), "--out: there is no folder missing"),
        (("import", "missing.csv"), "missing.csv: No such file or directory"),
        (("import", "pyproject.toml"), "could be anything; say --format"),
        (("erase", "", "--yes"), "the user is empty"),
        (("events", "alice", "--limit", "1_0"), "'1_0' is not a whole number"),
        (("summary", "alice", "--days", "\u0663"), "'\u0663' is not a whole number"),
        (("top", "--day", "today", "--action", "hint", "--parts", "4.0"), "'4.0' is not a whole number"),
    ],
)
def test_bad_input(ratelimit: Command, url: str, line: tuple[str, ...], told: str) -> None:
    status, out, err = ratelimit("usage", *line)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert told in err
    assert err.count("\n") == 1


def test_a_store_that_keeps_nothing(ratelimit: Command) -> None:
    status, _, err = ratelimit("usage", "events", "alice", "--store", "memory://")
    assert status == 2
    assert err.startswith("error: store: memory:// has no table; name one")


def test_a_store_that_is_down(ratelimit: Command) -> None:
    nowhere = "dynamodb://limits?region=eu-west-1&endpoint=http://127.0.0.1:9"
    status, _, err = ratelimit("usage", "summary", "alice", "--store", nowhere)
    assert status == 3
    assert err.startswith("error: cannot reach table 'limits'")


def test_totals_are_of_days_and_offer_no_time(ratelimit: Command) -> None:
    told = ratelimit("usage", "totals", "--help").out
    assert "TIME" not in told
    assert "DAY" in told


def test_the_timeline_of_an_action(
    ratelimit: Command, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its events come from a file: what an import puts on it is what the policy says."""
    url = engine.store_url(f"cli-{uuid4().hex[:8]}")
    assert ratelimit("table", "create", url).status == 0  # by its URL alone, which asks for no index
    config = tmp_path / "ratelimit.toml"
    config.write_text(f'store = "{url}"\n[policies.hint]\nquotas = "5/day"\ntimeline = true\n', encoding="utf-8")
    monkeypatch.setenv("RATELIMIT_CONFIG", str(config))
    day = today()
    lines = [
        {"user": user, "action": "hint", "time": f"{day}T00:00:0{second}Z", "allowed": second != 2, "resource": "/a"}
        for second, user in enumerate(("alice", "bob", "carol"))
    ]
    events = tmp_path / "events.jsonl"
    events.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert ratelimit("usage", "import", str(events)).status == 0
    status, out, err = ratelimit("usage", "timeline", "hint")
    assert (status, out) == (3, "")
    assert "--gsi2` makes the index" in err
    assert "index GSI2" in ratelimit("table", "verify", "--no-recovery").out
    assert ratelimit("table", "upgrade", "--no-recovery").status == 0
    status, out, err = ratelimit("usage", "timeline", "hint", "--limit", "2")
    assert (status, "alice" in out) == (0, False)
    assert out.index("carol") < out.index("bob")
    cursor = err.split("--cursor ")[1].strip()
    rest = ratelimit("usage", "timeline", "hint", "--limit", "2", "--cursor", cursor, "--json").json
    assert ([one["user"] for one in rest["events"]], rest["cursor"]) == (["alice"], None)
    denied = ratelimit("usage", "timeline", "hint", "--denied", "--resource", "/a", "--since", day, "--json").json
    assert [one["user"] for one in denied["events"]] == ["carol"]
    assert "no events of hint in this range" in ratelimit("usage", "timeline", "hint", "--status", "500").out
    assert ratelimit("demo", "seed", "--users", "3", "--days", "3").status == 0
    assert "demo-" in ratelimit("usage", "timeline", "hint").out, "a migration puts it there too"
