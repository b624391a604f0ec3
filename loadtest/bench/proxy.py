"""The sidecar in front of an upstream that answers at once: what limiting adds, and what the usual proxy takes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Annotated, Final, NamedTuple

import typer

from loadtest.bench import requester
from loadtest.bench.proxy_server import VARIANTS
from loadtest.bench.sheet import Row, Sheet, Target, conclude, sheet

NAMES: Final = {
    "off": "proxy, limiting off",
    "limited": "proxy, limiting on the embedded store",
    "logged": "the same, with the usage log",
    "usual": "Starlette + httpx, limiting off",
}


class _Turn(NamedTuple):
    per_second: float
    cpu_us: float


class Process:
    """A server of its own, which says on request what CPU it has used."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid
        self.port = int(self._line())

    def cpu_seconds(self) -> float:
        """Since it was started."""
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        return float(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


@contextmanager
def running(variant: str, upstream: str = "") -> Iterator[Process]:
    """One of `proxy_server`'s variants, or `upstream`."""
    command = [sys.executable, "-m", "loadtest.bench.proxy_server", variant, upstream]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        try:
            yield Process(process)
        finally:
            process.stdin.close()


def command(
    rounds: Annotated[int, typer.Option(help="Turns of each variant.")] = 5,
    seconds: Annotated[int, typer.Option(help="Length of one turn, in whole seconds.")] = 2,
    at_once: Annotated[int, typer.Option(help="Connections.")] = 32,
    json: Annotated[Path | None, typer.Option(help="Keep the figures in this file.")] = None,
) -> None:
    """The sidecar in front of an upstream that answers at once; and a proxy built the usual way."""
    conclude(run(rounds=rounds, seconds=seconds, at_once=at_once), json)


def run(*, rounds: int, seconds: float, at_once: int = 32) -> Sheet:
    """A process for each variant and one upstream, one variant busy at a time."""
    turns: dict[str, list[_Turn]] = {variant: [] for variant in VARIANTS}
    with ExitStack() as exits:
        upstream = f"http://127.0.0.1:{exits.enter_context(running('upstream')).port}"
        servers = {variant: exits.enter_context(running(variant, upstream)) for variant in VARIANTS}
        for server in servers.values():
            requester.request_many(server.port, seconds=min(1, seconds), at_once=at_once)
        for number in range(rounds):
            for variant in reversed(VARIANTS) if number % 2 else VARIANTS:
                turns[variant].append(_turn(servers[variant], seconds, at_once))
    rows = [Row(NAMES[variant], _figures(one, turns["off"])) for variant, one in turns.items()]
    client = "wrk" if requester.has_wrk() else "our own client (there is no wrk)"
    notes = [f"requests by {client}, uvicorn on uvloop and httptools, access logs off; all share this machine's cores"]
    options = f"--rounds {rounds} --seconds {seconds} --at-once {at_once}"
    return sheet("proxy", rows, _targets(turns), notes, arguments=options)


def _turn(server: Process, seconds: float, at_once: int) -> _Turn:
    before = server.cpu_seconds()
    rate, requests = requester.request_many(server.port, seconds=seconds, at_once=at_once)
    return _Turn(rate, (server.cpu_seconds() - before) / requests * 1e6)


def _figures(turns: list[_Turn], off: list[_Turn]) -> dict[str, float | None]:
    cpu = median(turn.cpu_us for turn in turns)
    return {
        "requests/s": median(turn.per_second for turn in turns),
        "CPU µs per request": cpu,
        "CPU µs more than off": cpu - median(turn.cpu_us for turn in off),
        "x CPU of off": _ratio(turns, off, "cpu_us"),
    }


def _ratio(one: list[_Turn], other: list[_Turn], figure: str) -> float:
    pairs = zip(one, other, strict=True)
    return float(median(getattr(mine, figure) / getattr(theirs, figure) for mine, theirs in pairs))


def _targets(turns: dict[str, list[_Turn]]) -> list[Target]:
    off, limited, _, usual = (turns[variant] for variant in VARIANTS)
    return [
        Target("limiting, times the CPU per request of limiting off", _ratio(limited, off, "cpu_us"), "at most", 1.6),
        Target("limiting, times the usual proxy's requests/s", _ratio(limited, usual, "per_second"), "at least", 2),
        Target("limiting off, times the usual proxy's requests/s", _ratio(off, usual, "per_second"), "at least", 2),
    ]
