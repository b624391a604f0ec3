"""Engines that speak DynamoDB, and a Redis: started for one benchmark on a free loopback port."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from ratelimit.testing.engines import EngineError, start

_READY_WITHIN = 10.0


class Absent(Exception):
    """What was asked for is not on this machine; the message says what is missing."""


@contextmanager
def engine(name: str) -> Iterator[str]:
    """The endpoint of an engine, started for this. Raises `Absent`."""
    exits = ExitStack()
    try:
        running = exits.enter_context(start(name))
    except EngineError as error:
        raise Absent(str(error)) from error
    with exits:
        yield running.endpoint


@contextmanager
def redis() -> Iterator[str]:
    """The URL of a Redis that keeps nothing. Raises `Absent`."""
    program = shutil.which("redis-server")
    if program is None:
        raise Absent("there is no redis-server on the PATH (Debian's package of this name has it)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as scratch:
        keeping = ["--save", "", "--appendonly", "no", "--dir", scratch]
        command = [program, "--port", str(port), "--bind", "127.0.0.1", *keeping]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL) as process:
            try:
                _wait(port)
                yield f"redis://127.0.0.1:{port}"
            finally:
                process.terminate()


def _wait(port: int) -> None:
    until = time.monotonic() + _READY_WITHIN
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError as error:
            if time.monotonic() > until:
                raise Absent(f"redis-server did not start: {error}") from error
            time.sleep(0.02)
        else:
            return
