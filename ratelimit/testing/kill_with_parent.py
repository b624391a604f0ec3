"""Run a command for exactly as long as its standard input stays open: `python kill_with_parent.py COMMAND ...`.

What is started through this stops when whoever started it closes the pipe, and also when they crash or are killed with
-9, because then the operating system closes it. A file of its own, without imports from this project.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

STOP_TIMEOUT_S = 5.0


def main(command: list[str]) -> int:
    """The command's exit status."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, lambda received, _: process.send_signal(received))
    threading.Thread(target=_stop_at_end_of_input, args=(process,), daemon=True).start()
    try:
        return process.wait()
    finally:
        _signal_all(process, signal.SIGKILL)


def _stop_at_end_of_input(process: subprocess.Popen[bytes]) -> None:
    while os.read(0, 1024):
        pass
    _signal_all(process, signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        _signal_all(process, signal.SIGKILL)


def _signal_all(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Also what the command has started itself."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
