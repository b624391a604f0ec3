"""A real client: curl."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from asyncio import StreamReader, StreamWriter
from pathlib import Path
from typing import NamedTuple

import pytest

from ratelimit.policy import Policy
from tests.http.apps import limiter_of
from tests.server.sockets import OK, SOON_S, answering, in_front_of, scripted

pytestmark = pytest.mark.process


class Said(NamedTuple):
    status: int
    out: str
    err: str


async def curl(*args: str) -> Said:
    """Not skipped where there is none: what this is about is that it works with curl."""
    program = shutil.which("curl")
    assert program is not None, "curl is not installed, and these tests need it"
    process = await asyncio.create_subprocess_exec(
        program, "--silent", "--show-error", "--noproxy", "*", *args,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(SOON_S):
        out, err = await process.communicate()
    assert process.returncode is not None
    return Said(process.returncode, out.decode(), err.decode())


async def test_five_then_a_refusal() -> None:
    limiter = limiter_of(Policy("api", "5/day", match="/**"))
    async with answering(OK) as (upstream, heads), in_front_of(upstream, limiter=limiter) as address:
        answers = [await curl("--include", "-H", "X-API-Key: alice", f"http://{address}/") for _ in range(6)]
        other = await curl("--include", "-H", "X-API-Key: bob", f"http://{address}/")
    assert [answer.out.split()[1] for answer in answers] == ["200"] * 5 + ["429"]
    assert 'ratelimit: "api";r=4;t=43200' in answers[0].out
    refused = answers[5].out
    assert "retry-after: 43200" in refused
    assert 'ratelimit: "api";r=0;t=43200' in refused
    assert "application/problem+json" in refused
    assert "quota-exceeded" in refused
    assert other.out.split()[1] == "200"
    assert len(heads) == 6


async def test_one_connection_for_several_requests() -> None:
    async def keeps(reader: StreamReader, writer: StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(OK)

    async with scripted(keeps) as upstream, in_front_of(upstream) as address:
        url = f"http://{address}/"
        said = await curl("--write-out", " %{num_connects}\n", url, "--next", "--write-out", " %{num_connects}\n", url)
    assert said.out.split() == ["ok", "1", "ok", "0"]


async def test_a_file_up_and_its_digest_back(tmp_path: Path) -> None:
    """curl sends `Expect: 100-continue` with it, and chunks where it does not know the length."""
    file = tmp_path / "file"
    file.write_bytes(os.urandom(3_000_000))

    async def digests(reader: StreamReader, writer: StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if b"content-length: 3000000" in head:
            body = await reader.readexactly(3_000_000)
        else:
            body = b""
            while size := int(await reader.readline(), 16):
                body += await reader.readexactly(size)
                await reader.readline()
            await reader.readline()
        digest = hashlib.sha256(body).hexdigest().encode()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(digest), digest))

    wanted = hashlib.sha256(file.read_bytes()).hexdigest()
    async with scripted(digests) as upstream, in_front_of(upstream) as address:
        for more in ([], ["-H", "Transfer-Encoding: chunked"]):
            said = await curl("--upload-file", str(file), *more, f"http://{address}/")
            assert (said.status, said.out) == (0, wanted)


async def test_an_answer_that_breaks_off_is_an_error_to_curl() -> None:
    async with answering(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\none") as (upstream, _):
        async with in_front_of(upstream) as address:
            said = await curl(f"http://{address}/")
    assert (said.status, said.out) == (18, "one")
