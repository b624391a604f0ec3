"""A line for each request: what it tells, and what it must not."""

from __future__ import annotations

import json
from asyncio import StreamReader, StreamWriter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ratelimit.factory import load_checked
from ratelimit.server.address import Address
from ratelimit.server.factory import sidecar
from ratelimit.server.listener import Listener
from tests.server.running import running, write
from tests.server.sockets import ask, listening, scripted

SECRET = {"x-api-key": "s3cret-key", "authorization": "Bearer s3cret-token", "cookie": "session=s3cret"}


def entries(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [json.loads(record.getMessage()) for record in caplog.records if record.name == "ratelimit.access"]


def ours(caplog: pytest.LogCaptureFixture) -> str:
    """Everything that we logged; the client of these tests may have a log of its own."""
    return "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("ratelimit"))


@pytest.fixture(autouse=True)
def heard(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="ratelimit.access")


async def upstream_with_an_id(reader: StreamReader, writer: StreamWriter) -> None:
    """Answers with what id it was told, and one of its own making."""
    while True:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        told = head.partition("x-request-id: ")[2].partition("\r\n")[0]
        answer = f"HTTP/1.1 200 OK\r\nx-told: {told}\r\nx-request-id: of its own\r\ncontent-length: 0\r\n\r\n"
        writer.write(answer.encode())


async def test_an_id_is_taken_over_passed_on_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with scripted(upstream_with_an_id) as upstream:
        async with running(write(tmp_path), upstream=f"http://{upstream}", access_log="json") as service:
            answer = await service.app.post("/hints?token=s3cret", headers=SECRET | {"x-request-id": "abc-123"})
            assert answer.headers["x-told"] == "abc-123"
            made = (await service.app.post("/hints", headers=SECRET)).headers["x-told"]
            refused = await service.app.post("/hints", headers=SECRET | {"x-request-id": "not plain"})
    assert "s3cret" not in ours(caplog)
    first, second, third = entries(caplog)
    assert (first["request_id"], second["request_id"]) == ("abc-123", made)
    assert len(made) == 32
    assert third["request_id"] == refused.headers["x-request-id"] != "not plain"
    assert {name: first[name] for name in ("method", "path", "status", "policies")} == {
        "method": "POST", "path": "/hints", "status": 200, "policies": {"hint": "allowed"},
    }  # fmt: skip
    assert (third["status"], third["policies"]) == (429, {"hint": "denied"})


async def test_as_text_it_is_one_line_of_words(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with scripted(upstream_with_an_id) as upstream:
        async with running(write(tmp_path), upstream=f"http://{upstream}", access_log="text") as service:
            await service.app.post("/hints?token=s3cret", headers=SECRET | {"x-request-id": "abc-123"})
    (line,) = [record.getMessage() for record in caplog.records if record.name == "ratelimit.access"]
    assert line.split()[1:5] == ["127.0.0.1", "POST", "/hints", "200"]
    assert line.split()[-2:] == ["hint=allowed", "abc-123"]
    assert "s3cret" not in line


@pytest.mark.parametrize("user", ["alice", "a%2Fb%2Fc", "alice@example.org"])
async def test_the_apis_own_paths_name_no_user(tmp_path: Path, caplog: pytest.LogCaptureFixture, user: str) -> None:
    async with running(write(tmp_path), access_log="json") as service:
        await service.app.get(f"/v1/users/{user}/usage", headers={"x-request-id": "abc-123"})
        await service.app.get(f"/v1/users/{user}")
        await service.statuses(1)
    assert [entry["path"] for entry in entries(caplog)] == ["/v1/users/*/usage", "/v1/users/*", "/v1/authz/hints"]
    assert [entry["request_id"] for entry in entries(caplog)] == ["abc-123", "-", "-"]


async def test_off_is_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(write(tmp_path), access_log="off") as service:
        await service.statuses(1)
    assert entries(caplog) == []


_REST = b" HTTP/1.1\r\nhost: a\r\nconnection: close\r\n"
_CHUNKED = b"POST /v1/check?s3cret" + _REST + b"transfer-encoding: chunked\r\n\r\n"
UNREAD = {
    "nonsense": (b"s3cret: nonsense\r\n\r\n", 400, "-", "-"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01s3cret\r\n\r\n", 400, "-", "-"),
    "a method": (b"FROB /x?s3cret" + _REST + b"\r\n", 400, "-", "-"),
    "a target": (b"GET /x\xff?s3cret" + _REST + b"\r\n", 400, "-", "-"),
    "a URL": (b"GET ftp://u:s3cret@b/x" + _REST + b"\r\n", 400, "GET", "-"),
    "a fragment": (b"GET /x#s3cret" + _REST + b"\r\n", 400, "GET", "/x"),
    "a field": (b"GET /x?s3cret" + _REST + b"a : s3cret\r\n\r\n", 400, "GET", "/x"),
    "a user in the path": (b"GET /v1/users/s3cret/usage?a" + _REST + b"a : b\r\n\r\n", 400, "GET", "/v1/users/*/usage"),
    "a large field": (b"GET /x?s3cret" + _REST + b"a: " + b"b" * 70_000 + b"\r\n\r\n", 431, "GET", "/x"),
    "a large target": (b"GET /x?" + b"s3cret" * 20_000 + _REST + b"\r\n", 431, "GET", "/x"),
    "a version": (b"GET /x?s3cret HTTP/1.7\r\n\r\n", 505, "GET", "/x"),
    "CONNECT": (b"CONNECT s3cret:443" + _REST + b"\r\n", 400, "CONNECT", "-"),
    "a chunk": (_CHUNKED + b"s3cret\r\n", 400, "POST", "/v1/check"),
}


@pytest.mark.parametrize(("sent", "status", "method", "path"), UNREAD.values(), ids=UNREAD)
async def test_what_no_app_has_seen_has_its_line_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, sent: bytes, status: int, method: str, path: str
) -> None:
    one = sidecar(partial(load_checked, write(tmp_path), env={}), access_log="json")
    listening = Address(port=0).bind()
    listener = Listener(one, listening.socket)
    await listener.start()
    try:
        answer = await ask(listening.where.removeprefix("http://"), sent)
    finally:
        await listener.drain(linger=0, grace=5)
        await listener.stop()
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    (entry,) = entries(caplog)
    said = {name: entry[name] for name in ("client", "method", "path", "status", "bytes", "policies")}
    length = len(answer.partition(b"\r\n\r\n")[2])
    assert said == {
        "client": "127.0.0.1", "method": method, "path": path, "status": status, "bytes": length, "policies": {},
    }  # fmt: skip
    assert "s3cret" not in caplog.text


async def test_where_users_are_hashed_no_address_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, settings=f'user_hash_key = "{"k" * 32}"')
    one = sidecar(partial(load_checked, path, env={}), access_log="json")
    async with listening(one) as address:
        await ask(address, b"nonsense\r\n\r\n")
    assert [entry["client"] for entry in entries(caplog)] == [None]
