"""`ratelimit top`: what it shows on how large a screen, what it says where it cannot, and how it ends."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import StringIO
from pathlib import Path
from signal import SIGINT
from typing import Any

import pytest
from rich.console import Console

from ratelimit.cli.top import Screen
from tests.cli.command import Command

TOKEN = "t" * 16
NUMBERS = {"allowed": [800.0, 912.4], "denied": [1.0, 12.0], "shadow_denied": [0.0, 3.5], "unavailable": [None, 0.0]}
WELL = {"status": "ok", "store_state": "ok", "breaker": "closed"}


def live(*, policies: int = 2, keys: int = 3, user: str = "alice", allowed: float = 912.4) -> dict[str, Any]:
    return {
        "at": "2026-11-28T22:31:05.12Z",
        "covers": {"workers": 2, "silent": [], "since": "2026-11-28T20:31:05Z", "what": "…"},
        "store": "dynamodb://limits?region=eu-west-1",
        "health": {"status": "ok", "workers": {"0": WELL, "1": WELL}},
        "series": {
            **NUMBERS, "allowed": [800.0, allowed],
            "writes": [5.0, 700.0], "reads": [0.0, 0.25], "throttles": [0.0, 0.0],
            "p50_ms": [None, 0.41], "p99_ms": [None, 2.25],
        },
        "policies": [
            {
                "name": f"policy-{number}", "quotas": ["5/day", "2/minute"], "mode": "shadow", "series": NUMBERS,
                "totals": {"allowed": 75, "denied": 20, "shadow_denied": 5, "unavailable": 0},
            }
            for number in range(policies)
        ],
        "policies_left_out": 9950,
        "keys_window_s": 437,
        "refused": [{"user": user, "action": "hint", "count": 1120, "error": 20}] * keys,
        "hot": [{"user": "bob", "action": "run", "writes": 9, "error": 0}] * keys,
        "cost": {"total": "61.20", "seconds": 3600.0},
    }  # fmt: skip


def drawn(found: dict[str, Any], *, width: int = 110, height: int = 30, problem: str = "") -> list[str]:
    console = Console(file=StringIO(), width=width, height=height, markup=False, highlight=False, emoji=False)
    screen = Screen(found)
    screen.problem = problem
    console.print(screen)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text.splitlines()


def test_what_there_is_to_see() -> None:
    lines = drawn(live())
    text = "\n".join(lines)
    assert "2 workers, up 2 h  22:31:05 UTC  dynamodb://limits" in lines[0]
    for said in (
        "912 allowed/s", "12 denied/s", "3.5 in shadow/s", "p50 0.41 ms  p99 2.25 ms", "700 writes/s  0.25 reads/s",
        "$61.20 a month by the last 1 h", "▇█", "POLICY (and 9,950 more)", "5/day; 2/minute", "25.0%",
        "REFUSED in the last 7 min 17 s", "1,100-1,120",
    ):  # fmt: skip
        assert said in text, said


@pytest.mark.parametrize(("width", "height"), [(110, 30), (80, 24), (80, 14), (40, 10), (200, 60)])
def test_it_fits(width: int, height: int) -> None:
    lines = drawn(live(policies=50, keys=50), width=width, height=height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    shown = sum(line.startswith("policy-") for line in lines)
    assert width < 100 or f"POLICY (and {10_000 - shown:,} more)" in "\n".join(lines)
    assert any("alice" in line for line in lines)


def test_a_name_is_shown_as_it_is() -> None:
    assert any("[red]x[/red] :smile:" in line for line in drawn(live(user="[red]x[/red] :smile:")))


def test_what_is_wrong() -> None:
    found = live()
    found["health"] = {"status": "degraded", "workers": {
        "0": {"status": "degraded", "store_state": "late", "breaker": "open"}, "1": {"status": "silent"},
    }}  # fmt: skip
    found["covers"]["silent"] = ["1"]
    found["policies"] = [{**found["policies"][0], "name": "gone"} | {"quotas": [], "mode": ""}]
    found["series"] = {name: [] for name in found["series"]}
    lines = drawn(found)
    assert "degraded  2 workers, and 1 silent" in lines[0]
    assert lines[1].startswith("- allowed/s")
    assert "worker 0: degraded, store late, breaker open; worker 1 is silent" in lines[3]
    assert "no live data from" in drawn(found, problem="no live data from http://…")[3]


class Listener(BaseHTTPRequestHandler):
    document: Any = live()

    def do_GET(self) -> None:
        known = self.document and self.path == "/live" and self.headers["Authorization"] == f"Bearer {TOKEN}"
        self.send_response(200 if known else 401)
        self.end_headers()
        self.wfile.write(json.dumps(self.document).encode() if known else b"no")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Listener) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_one_sample(ratelimit: Command, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"http://127.0.0.1:{port}"
    refused = ratelimit("top", "--url", url)
    assert (refused.status, refused.err) == (3, f"error: {url}/live answered 401; set RATELIMIT_ADMIN_TOKEN\n")
    monkeypatch.setenv("RATELIMIT_ADMIN_TOKEN", TOKEN)
    assert ratelimit("top", "--url", url, "--json").json == live()
    status, out, _ = ratelimit("top", "--url", url)
    assert (status, "912 allowed/s" in out, "\x1b" in out) == (0, True, False)
    monkeypatch.setattr(Listener, "document", {"detail": "something else"})
    assert "is it the admin listener of `ratelimit serve`?" in ratelimit("top", "--url", url).err


def test_where_the_configuration_has_it(ratelimit: Command, port: int, tmp_path: Path) -> None:
    path = tmp_path / "ratelimit.toml"
    path.write_text(f'admin = "0.0.0.0:{port}"\nadmin_token = "{TOKEN}"')
    assert ratelimit("top", "--config", str(path), "--json").json == live()
    path.write_text(f'admin = "0.0.0.0:{port}"\nadmin_token = "{"a" * 16}"\nadmin_read_token = "{TOKEN}"')
    assert ratelimit("top", "--config", str(path), "--json").status == 0, "the lesser one, where there are two"
    path.write_text('admin = "off"')
    status, _, err = ratelimit("top", "--config", str(path))
    assert (status, "--url: the configuration has no admin listener" in err) == (2, True)


def test_a_url_gets_no_token_of_a_file_that_nobody_named(
    ratelimit: Command, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ratelimit.toml"
    path.write_text(f'admin_token = "{TOKEN}"')
    monkeypatch.setenv("RATELIMIT_CONFIG", str(path))
    assert ratelimit("top", "--url", f"http://127.0.0.1:{port}").status == 3
    assert ratelimit("top", "--url", f"http://127.0.0.1:{port}", "--config", str(path), "--json").status == 0


def test_nobody_is_there(ratelimit: Command) -> None:
    status, _, err = ratelimit("top", "--url", "http://127.0.0.1:9")
    nobody = "error: nothing answers at http://127.0.0.1:9/live: Connection refused; is the service running there?"
    assert (status, err.strip()) == (3, nobody)
    for wrong in ("nowhere", "http://[", "http://127.0.0.1:99999", "http://127.0.0.1:eight", "http://127.0.0.1:0"):
        assert f"--url: '{wrong}' is no URL" in ratelimit("top", "--url", wrong).err


@pytest.mark.process
def test_it_draws_until_ctrl_c(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Listener, "document", live())
    ours, theirs = pty.openpty()
    env = {**os.environ, "RATELIMIT_ADMIN_TOKEN": TOKEN, "TERM": "xterm", "COLUMNS": "100", "LINES": "24"}
    command = [sys.executable, "-m", "ratelimit", "top", "--url", f"http://127.0.0.1:{port}", "--interval", "0.1"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    try:
        os.close(theirs)
        seen = ""
        for document, said in ((live(), "912 allowed/s"), (live(allowed=777), "777 allowed/s"), (None, "answered 401")):
            Listener.document = document
            while said not in seen:
                seen += os.read(ours, 65536).decode("utf-8", "replace")
        process.send_signal(SIGINT)
        try:
            while chunk := os.read(ours, 65536):
                seen += chunk.decode("utf-8", "replace")
        except OSError:  # the other end was closed
            pass
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert "\x1b[?1049h" in seen, "the alternate screen"
    assert "\x1b[?1049l" in seen, "and back"
    assert "Traceback" not in seen
