"""`ratelimit serve`: what it refuses to start with, and a process from its start line to SIGTERM."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio import StreamReader, StreamWriter
from asyncio.subprocess import PIPE

import httpx
import pytest

from tests.cli.command import Command
from tests.proxy.sockets import scripted

QUICK = ("--action", "api", "--quota", "2/day", "--user-from", "header:x-api-key")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (QUICK, "--upstream is needed"),
        (("--upstream", "http://a"), "nothing is limited"),
        (("--upstream", "a", *QUICK), "upstream: expected a URL such as http://127.0.0.1:8000"),
        (("--upstream", "http://a", *QUICK, "--workers", "4"), "--workers: memory:// would count in each of the 4"),
        (("--upstream", "http://a", "--action", "api"), "--quota: --action and --quota belong together"),
        (("--upstream", "http://a", "--action", "api", "--quota", "5/x"), "--quota: unknown unit 'x'"),
        (("--upstream", "http://a", *QUICK, "--user-from", "heder:x"), "--user-from: unknown source 'heder:x'"),
        (("--upstream", "http://a", *QUICK, "--access-log", "xml"), "--access-log: unknown value 'xml'"),
    ],
)
def test_bad_input(ratelimit: Command, options: tuple[str, ...], told: str) -> None:
    status, _, err = ratelimit("serve", *options)
    assert status == 2
    assert told in err


async def test_sigterm_finishes_what_runs() -> None:
    asked, answer_now = asyncio.Event(), asyncio.Event()

    async def slow(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await answer_now.wait()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        await writer.drain()

    async with scripted(slow) as upstream, httpx.AsyncClient(headers={"x-api-key": "secret"}) as client:
        line = ("-m", "ratelimit", "serve", "--upstream", f"http://{upstream}", *QUICK, "--port", "0")
        process = await asyncio.create_subprocess_exec(sys.executable, *line, stdout=PIPE, stderr=PIPE)
        try:
            assert process.stderr is not None
            told = (await asyncio.wait_for(process.stderr.readline(), 20)).decode()
            assert "api (2/day); users from header:x-api-key" in told
            running = asyncio.create_task(client.get(told.split()[2] + "/a?token=secret", timeout=20))
            await asyncio.wait_for(asked.wait(), 20)
            process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.2)
            answer_now.set()
            assert (await running).text == "ok"
            out, _ = await asyncio.wait_for(process.communicate(), 20)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert process.returncode == 0
    assert " GET /a 200 2B " in out.decode()
    assert "secret" not in out.decode()
