"""The servers of a group: started, asked for their books, and stopped. They end with the pipe that we hold."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from loadtest.plan import Group
from loadtest.run.options import Trouble

READY_WITHIN: Final = 120.0
BOOKS_WITHIN: Final = 600.0
STOP_WITHIN: Final = 90.0
NEEDED: Final[dict[Group, tuple[str, ...]]] = {
    "checks": ("driver",),
    "middleware": ("bare", "limited"),
    "sidecar": ("bare", "proxy", "decision"),
    "usage": ("limited",),
}
_LAST_WORDS: Final = 2_000


class Server:
    """One of them: `serve` in a process of its own, that the terminal's Ctrl-C does not reach."""

    def __init__(self, name: str, url: str, host: str, upstream: str, log: Path) -> None:
        self.name = name
        self._log = log
        environment = {**os.environ, "NO_PROXY": "*", "no_proxy": "*"}
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ratelimit.loadtest.serve", name, url, host, upstream],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment, start_new_session=True,
            )  # fmt: skip
        self.address = ""

    def wait(self) -> None:
        """Until it is ready. Raises `Trouble`."""
        self.address = str(self._read(READY_WITHIN)["address"])

    def count(self, prefix: str) -> dict[str, Any]:
        """What its store holds; empty where it has none. Raises `Trouble`."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"count": prefix}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._trouble("ended during the run") from None
        return self._read(BOOKS_WITHIN)

    def stop(self) -> None:
        """It closes what it has open; if that takes too long, it is ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(STOP_WITHIN)
        except (OSError, subprocess.TimeoutExpired, KeyboardInterrupt):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _read(self, within: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        until = time.monotonic() + within
        line = b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                raise self._trouble(f"gave no answer within {within:.0f} s")
            if not (more := os.read(self._process.stdout.fileno(), 1 << 20)):
                raise self._trouble("ended")
            line += more
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _trouble(self, what: str) -> Trouble:
        said = self._log.read_text(errors="replace")[-_LAST_WORDS:].strip()
        return Trouble(f"the server {self.name!r} {what}" + (f":\n{said}" if said else ""), status=3)


@contextmanager
def servers(group: Group, url: str, host: str, scratch: Path) -> Iterator[dict[str, Server]]:
    """Those that a group needs, ready. The one without anything in front is the upstream of the others."""
    with ExitStack() as exits:
        running: dict[str, Server] = {}
        for name in NEEDED[group]:
            upstream = running["bare"].address if "bare" in running else ""
            server = running[name] = Server(name, url, host, upstream, scratch / f"{group}-{name}.log")
            exits.callback(server.stop)
            server.wait()
        yield running
