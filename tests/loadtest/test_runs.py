"""Whole runs, short ones: real servers, real Locust, the suite's engine; and everything that can be wrong with one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from loadtest.generate import LOCUSTFILE
from loadtest.result import Report, read_report
from ratelimit import Limiter, Policy, open_store
from tests.engines import Engine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
WITHIN = 400.0
SHORT = ("--duration", "2", "--warm-up", "0.5", "--users", "16")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "ratelimit", "loadtest", "run", *arguments]


def run(folder: Path, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments, "--report", str(folder)), capture_output=True, text=True, timeout=WITHIN, check=False,
        env={**os.environ, "COLUMNS": "200", **(env or {})},
    )  # fmt: skip


def processes(mark: str) -> list[str]:
    """Command lines of what is running, that hold a text."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if mark in line and int(entry.parent.name) != os.getpid():
            found.append(line)
    return found


def children(pid: int) -> list[int]:
    """The processes that one has started."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = entry.read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if int(parent) == pid:
            found.append(int(entry.parent.name))
    return found


def gone(mark: str) -> bool:
    """Whether all of them end."""
    until = time.monotonic() + 120
    while processes(mark):
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """Every group on the embedded store, with budgets that only a fault breaks."""
    folder = tmp_path_factory.mktemp("embedded")
    done = run(folder, "--engine", "memory", "--smoke")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, read_report(folder / "report.json")


def test_a_run_leaves_its_report(embedded: tuple[Path, Report]) -> None:
    folder, report = embedded
    groups = ("checks", "middleware", "sidecar", "usage")
    assert {file.name for file in folder.iterdir()} == {
        "index.html", "report.json", "figures.csv", *(f"locust-{group}.html" for group in groups),
    }  # fmt: skip
    assert report.complete
    assert report.holds
    assert [group.group for group in report.groups] == list(groups)
    assert all(series.count > 0 for group in report.groups for series in group.series)


def test_the_books_agree(embedded: tuple[Path, Report]) -> None:
    for group in embedded[1].groups:
        books = group.exactness
        assert books.holds
        assert books.admitted == books.counted == books.logged > 0


def test_a_quota_admits_its_number_under_load(embedded: tuple[Path, Report]) -> None:
    checks = embedded[1].groups[0]
    denied = next(series for series in checks.series if series.name == "denied")
    assert denied.refused > 0
    assert [series.name for series in checks.series if series.refused and series.name != "denied"] == []


def test_added_latency_is_reported_with_its_noise(embedded: tuple[Path, Report]) -> None:
    middleware = embedded[1].groups[1]
    (added,) = middleware.added
    assert (added.series, added.over) == ("with the middleware", "bare app")
    assert added.p50.low <= added.p50.value <= added.p50.high


def test_on_an_engine(engine: Engine, tmp_path: Path) -> None:
    """A table of our own: created, written, and open to the next load test, by two processes of Locust."""
    url = engine.store_url("loadtest-own", create="true")
    for processes_ in ("1", "2"):
        arguments = ("checks", "--store", url, "--processes", processes_, "--rate", "60", "--smoke")
        done = run(tmp_path, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        (checks,) = read_report(tmp_path / "report.json").groups
        assert checks.exactness.holds
        assert checks.count + checks.pace.unsent == pytest.approx(240, abs=5)
        assert {meter.name: meter.per_check for meter in checks.meters}["allowed"] >= 1.0
        assert checks.event_units is not None


async def test_a_table_that_is_not_ours_is_left_alone(engine: Engine, tmp_path: Path) -> None:
    url = engine.store_url("loadtest-foreign", create="true")
    store = await open_store(url)
    async with Limiter(store, [Policy("hint", "5/day")]) as limiter:
        await limiter.check("alice", "hint")
    arguments = ("checks", "--store", url, "--rate", "40", "--smoke")
    refused = run(tmp_path, *arguments)
    assert refused.returncode == 2
    assert "holds what no load test has written ('USR#alice#LIM#hint')" in refused.stderr
    assert "--foreign" in refused.stderr
    assert not (tmp_path / "report.json").exists()
    told = run(tmp_path, *arguments, "--foreign")
    assert told.returncode == 0, told.stdout + told.stderr
    assert read_report(tmp_path / "report.json").groups[0].exactness.holds


def test_a_rate_that_nothing_could_keep(tmp_path: Path) -> None:
    """The report says so, the latencies hold the waiting, and the budget is broken."""
    done = run(tmp_path, "checks", "--engine", "memory", "--rate", "100000", *SHORT)
    assert done.returncode == 1, done.stdout + done.stderr
    report = read_report(tmp_path / "report.json")
    (checks,) = report.groups
    assert not checks.pace.kept
    assert checks.pace.unsent > 1000
    assert any("the intended rate was not kept" in note for note in report.notes)
    medians = [series.latency.p50 for series in checks.series if series.latency is not None]
    assert min(medians) > 100  # ms: half of them waited for longer, though an answer takes one or two
    assert checks.exactness.holds


def test_a_broken_budget_is_the_exit_status(tmp_path: Path) -> None:
    budgets = tmp_path / "budgets.toml"
    budgets.write_text('[all.added_p50_ms]\n"with the middleware" = -1000\n')
    done = run(tmp_path / "report", "middleware", "--engine", "memory", "--budgets", str(budgets), *SHORT)
    assert done.returncode == 1
    assert "1 of 2 budgets BROKEN" in done.stdout


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """A run that is measuring."""
    process = subprocess.Popen(
        command(*arguments, "--report", str(folder)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + WITHIN
    while not _is_measuring(folder):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.1)
    return process


def _is_measuring(folder: Path) -> bool:
    """Once Locust is there, some seconds of requests are on their way."""
    return bool(processes(f"{folder}/locust-")) and bool(processes("loadtest.serve"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_cut_short_it_says_so_and_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, "checks", "--engine", "ministack", "--duration", "120", "--warm-up", "0")
    # The first line of progress: then there is something to report.
    assert process.stderr is not None
    seen = next(line for line in process.stderr if " of 120 s" in line)
    assert "errors" in seen
    process.send_signal(number)
    out, err = process.communicate(timeout=WITHIN)
    assert process.returncode == 130, out + err
    assert "PARTIAL, cut short" in out
    report = read_report(tmp_path / "report.json")
    assert not report.complete
    assert 0 < report.groups[0].seconds < 110
    assert report.groups[0].exactness.holds
    assert "Partial: this run was cut short" in (tmp_path / "index.html").read_text(encoding="utf-8")
    assert gone(str(tmp_path))
    assert gone(report.run)


def test_killed_it_leaves_nothing_running(tmp_path: Path) -> None:
    process = start(tmp_path, "sidecar", "--engine", "memory", "--duration", "120", "--processes", "2")
    own = children(process.pid)
    assert len(own) == 4  # three servers, and what kills Locust with them
    process.kill()
    process.communicate()
    until = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in own):
        assert time.monotonic() < until, own
        time.sleep(0.1)
    assert gone(str(tmp_path))  # Locust and its workers, which have the path of the report on their command line


def test_without_an_engine_it_says_what_is_missing(tmp_path: Path) -> None:
    done = run(tmp_path, "checks", "--engine", "dynamodb-local", *SHORT, env={"PATH": str(tmp_path)})
    assert done.returncode == 3
    assert "DynamoDB Local needs java, and there is none on the PATH" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    url = "dynamodb://loadtest-none?region=eu-west-1&endpoint=http://127.0.0.1:9"
    done = run(tmp_path, "checks", "--store", url, *SHORT)
    assert done.returncode == 3
    assert "127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run(tmp_path, "--engine", "memory", "--expect-workers", "1", "--master-port", port)
    assert done.returncode == 2
    assert f"--master-port: cannot listen on 127.0.0.1:{port}" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("cheks",), "unknown group 'cheks'; there are checks, middleware, sidecar, usage"),
        (("--engine", "moto"), "--engine: unknown engine 'moto'"),
        (("--store", "memory://"), "--engine memory"),
        (("--engine", "memory", "--budgets", "/nowhere.toml"), "/nowhere.toml: No such file"),
        (("--rate", "0"), "'--rate'"),
    ],
)
def test_bad_input(tmp_path: Path, arguments: tuple[str, ...], told: str) -> None:
    done = run(tmp_path, *arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_workers_may_be_elsewhere(tmp_path: Path) -> None:
    """A worker that is started by hand, and knows no more than where its master is."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    arguments = ("middleware", "--engine", "memory", "--expect-workers", "1", "--master-port", port, "--smoke")
    worker = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--worker", "--master-port", port]
    ended = threading.Event()

    def keep_trying() -> None:
        while not ended.is_set():
            subprocess.run(worker, capture_output=True, timeout=WITHIN, check=False)

    by_hand = threading.Thread(target=keep_trying)
    by_hand.start()
    try:
        done = run(tmp_path, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        assert read_report(tmp_path / "report.json").groups[0].exactness.holds
    finally:
        ended.set()
        for line in Path("/proc").glob("[0-9]*/cmdline"):
            if f"--worker\0--master-port\0{port}\0".encode() in line.read_bytes():
                os.kill(int(line.parent.name), signal.SIGTERM)
        by_hand.join()
