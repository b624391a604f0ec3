"""Requests by the thousand: `wrk` where it is installed, else a client of our own, which takes more of the machine."""

from __future__ import annotations

import asyncio
import itertools
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

_SCRIPT = Path(__file__).with_name("requests.lua")
_RATE = re.compile(r"Requests/sec:\s+([\d.]+)")
_BAD = re.compile(r"Non-2xx.*|Socket errors.*")
_OPENER = build_opener(ProxyHandler({}))


def name() -> str:
    """Which of the two it is."""
    return "wrk" if shutil.which("wrk") else "asyncio"


def request_many(port: int, *, seconds: int, at_once: int) -> float:
    """Requests a second, every one of them answered with 200. Raises `RuntimeError` where one was not."""
    if name() == "wrk":
        command = ["wrk", "-t1", f"-c{at_once}", f"-d{seconds}s", "-s", str(_SCRIPT), f"http://127.0.0.1:{port}/"]
    else:
        command = [sys.executable, "-m", "loadtest.bench.requester", str(port), str(seconds), str(at_once)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 60).stdout
    rate, bad = _RATE.search(said), _BAD.search(said)
    if rate is None or bad is not None:
        raise RuntimeError(said if bad is None else bad.group())
    return float(rate.group(1))


def read(port: int, path: str) -> str:
    """The body of one answer."""
    with _OPENER.open(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
        body: bytes = response.read()
        return body.decode()


async def _main(port: int, seconds: int, at_once: int) -> None:
    users = itertools.cycle([f"GET / HTTP/1.1\r\nHost: x\r\nx-user: user-{n}\r\n\r\n".encode() for n in range(256)])
    until = time.perf_counter() + seconds
    done = bad = 0

    async def loop() -> None:
        nonlocal done, bad
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < until:
            writer.write(next(users))
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0]))
            done += 1
            bad += not head.startswith(b"HTTP/1.1 200")
        writer.close()

    await asyncio.gather(*(loop() for _ in range(at_once)))
    print(f"Requests/sec: {done / seconds}" + f"\nNon-2xx: {bad}" * bool(bad))  # noqa: T201


if __name__ == "__main__":
    asyncio.run(_main(*map(int, sys.argv[1:])))
