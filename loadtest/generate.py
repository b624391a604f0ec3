"""Locust, in a process of its own: started with a plan, read line by line, told to stop."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Timer
from typing import Final

import msgspec

from ratelimit.testing.engines import free_port, run_with_parent

from .options import Options
from .plan import CUT_SHORT, LoadPlan, SampleBatch, Trouble

LOCUSTFILE: Final = Path(__file__).parent / "load" / "locustfile.py"
STOP_TIMEOUT: Final = 15
_LAST_WORDS: Final = 2_000
_MORE: Final = 180.0
"""Seconds that Locust may take for starting and stopping."""

Tell = Callable[[str, SampleBatch], None]
"""Which worker, and what it has to tell."""


def generate(plan: LoadPlan, options: Options, html: Path, log: Path, tell: Tell) -> bool:
    """Run it to its end; False where it was cut short by Ctrl-C, which lets what is under way finish.

    Raises `Trouble` where Locust failed, or did not come to its end.
    """
    with log.open("wb") as errors:
        process = run_with_parent(_command(plan, options, html), stdout=subprocess.PIPE, stderr=errors)
    assert process.stdin is not None
    too_long = Timer(plan.warm_up + plan.duration + _MORE, process.stdin.close)
    if not options.expect_workers:  # whom somebody starts by hand when it suits them
        too_long.start()
    try:
        interrupted = _listen(process, tell)
    finally:
        too_long.cancel()
        process.stdin.close()
        status = process.wait()
    if status and not interrupted:
        said = log.read_text(errors="replace")[-_LAST_WORDS:]
        raise Trouble(f"Locust failed with status {status}:\n{said}", status=3)
    return not interrupted


def _listen(process: subprocess.Popen[bytes], tell: Tell) -> bool:
    """Until it has nothing more to tell; whether it was cut short. A second Ctrl-C does not wait any longer.

    Nothing is raised at the first: it would get lost what is being read, and with it admissions of the books.
    """
    received: list[int] = []

    def cut_short(number: int, _: object) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt
        process.send_signal(CUT_SHORT)

    before = {number: signal.signal(number, cut_short) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for worker, batch in _lines(process):
            tell(worker, batch)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return bool(received)


def _lines(process: subprocess.Popen[bytes]) -> Iterator[tuple[str, SampleBatch]]:
    assert process.stdout is not None
    while line := process.stdout.readline():
        if line.startswith(b"@"):
            worker, batch = json.loads(line[1:])
            yield worker, SampleBatch(*batch)


def _command(plan: LoadPlan, options: Options, html: Path) -> list[str]:
    command = [
        sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary", "--loglevel", "WARNING",
        "--html", str(html), "--stop-timeout", str(STOP_TIMEOUT), "--exit-code-on-error", "0",
        "--plan", msgspec.json.encode(plan).decode(),
    ]  # fmt: skip
    if options.expect_workers:
        command += ["--master", "--expect-workers", str(options.expect_workers)]
        command += ["--master-bind-host", options.host, "--master-bind-port", str(options.master_port)]
    elif options.processes > 1:
        port = str(free_port())
        command += ["--processes", str(options.processes), "--master-bind-host", "127.0.0.1"]
        command += ["--master-bind-port", port, "--master-port", port]
    return [*command, "PacedUser"]


def check_port(host: str, port: int) -> None:
    """Raises `Trouble` where somebody listens there already."""
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise Trouble(f"--master-port: cannot listen on {host}:{port}: {error.strerror or error}") from error
