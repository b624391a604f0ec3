"""Through real sockets: what the upstream gets, what the client gets, and what a broken upstream comes to."""

from __future__ import annotations

import asyncio
import json
from asyncio import StreamReader, StreamWriter
from pathlib import Path

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio.client import connect

from ratelimit.errors import ConfigError
from ratelimit.policy import Policy
from ratelimit.proxy import ProxySettings, Upstream
from tests.http.apps import limiter_of
from tests.http.test_server import served
from tests.proxy.sockets import ask, in_front_of, scripted

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
GET = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"


async def _echo(request: Request) -> Response:
    raw = [(name.decode(), value.decode("latin-1")) for name, value in request.scope["headers"]]
    found = {"headers": raw, "path": request.scope["raw_path"].decode(), "body": len(await request.body())}
    answer = JSONResponse(found, status_code=int(request.query_params.get("status", "200")))
    if "cost" in request.query_params:
        answer.headers["x-ratelimit-cost"] = request.query_params["cost"]
    answer.headers.append("set-cookie", "a=1")
    answer.headers.append("set-cookie", "b=2")
    answer.headers["connection"] = "x-hop"
    answer.headers["x-hop"] = "1"
    return answer


async def _chat(websocket: WebSocket) -> None:
    await websocket.accept(subprotocol="chat")
    await websocket.send_text(await websocket.receive_text())
    await websocket.close(4001, "enough")


ECHO = Starlette(
    routes=[WebSocketRoute("/chat", _chat), Route("/{path:path}", _echo, methods=["GET", "POST", "DELETE"])]
)


async def test_what_the_upstream_is_told() -> None:
    headers = [
        ("X-API-Key", "alice"), ("X-RateLimit-User", "root"), ("X_RateLimit_User", "root"),
        ("X-Forwarded-For", "1.2.3.4"),
        ("X-Real-IP", "1.2.3.4"), ("Connection", "keep-alive, x-mine"), ("X-Mine", "1"), ("TE", "trailers"),
        ("X-Twice", "1"), ("X-Twice", "2"), ("X-Request-ID", "id-7"), ("Host", "shop.example"),
    ]  # fmt: skip
    async with served(ECHO) as upstream, in_front_of(upstream) as address, httpx.AsyncClient() as client:
        answer = await client.post(f"http://{address}/a%2Fb/?q=%20", headers=headers, content=b"x" * 100_000)
    got = answer.json()
    told: dict[str, list[str]] = {}
    for name, value in got["headers"]:
        told.setdefault(name, []).append(value)
    assert (got["path"], got["body"]) == ("/a%2Fb/", 100_000)
    assert told["x-ratelimit-user"] == ["alice"]
    assert told["x-forwarded-for"] == ["127.0.0.1"]
    assert told["forwarded"] == ['for=127.0.0.1;host="shop.example";proto=http']
    assert (told["host"], told["x-forwarded-host"]) == (["shop.example"], ["shop.example"])
    assert (told["x-twice"], told["via"], told["x-request-id"]) == (["1", "2"], ["1.1 ratelimit"], ["id-7"])
    assert not {"x_ratelimit_user", "x-real-ip", "x-mine", "te", "connection"} & set(told)
    assert answer.headers.get_list("set-cookie") == ["a=1", "b=2"]
    assert "x-hop" not in answer.headers
    assert (answer.headers["via"], answer.headers["x-request-id"]) == ("1.1 ratelimit", "id-7")
    assert "date" in answer.headers


@pytest.mark.parametrize(("stated", "used"), [("17", 17), ("0", 0), ("1", 1), ("many", 1), ("9" * 40, 1)])
async def test_a_stated_cost_is_charged_and_not_shown(stated: str, used: int) -> None:
    limiter = limiter_of(Policy("api", "10/day", match="/**"))
    async with served(ECHO) as upstream, in_front_of(upstream, limiter=limiter) as address:
        async with httpx.AsyncClient(headers={"x-api-key": "alice"}) as client:
            answer = await client.get(f"http://{address}/?cost={stated}")
        assert answer.status_code == 200
        assert "x-ratelimit-cost" not in answer.headers
        # After a charge the fields say what is left now; what was given back is left besides.
        assert f"r={min(9, max(0, 10 - used))};" in answer.headers["ratelimit"]
        assert (await limiter.peek("alice", "api")).used == used


async def test_a_stated_cost_of_what_does_not_count_is_not_charged() -> None:
    limiter = limiter_of(Policy("api", "10/day", match="/**", count="success"))
    async with served(ECHO) as upstream, in_front_of(upstream, limiter=limiter) as address:
        async with httpx.AsyncClient(headers={"x-api-key": "alice"}) as client:
            assert (await client.get(f"http://{address}/?cost=5&status=500")).status_code == 500
    assert (await limiter.peek("alice", "api")).used == 0


async def test_a_websocket_both_ways() -> None:
    async with served(ECHO) as upstream, in_front_of(upstream) as address:
        async with connect(f"ws://{address}/chat", proxy=None, subprotocols=["chat"]) as websocket:  # type: ignore[list-item]
            assert websocket.subprotocol == "chat"
            await websocket.send("hello")
            assert await websocket.recv() == "hello"
            await websocket.wait_closed()
            assert (websocket.close_code, websocket.close_reason) == (4001, "enough")


async def test_an_event_stream_is_not_held_back() -> None:
    go_on = asyncio.Event()

    async def script(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
        await go_on.wait()
        writer.write(b"3\r\ntwo\r\n0\r\n\r\n")

    async with scripted(script) as upstream, in_front_of(upstream) as address, httpx.AsyncClient() as client:
        async with client.stream("GET", f"http://{address}/") as answer:
            pieces = answer.aiter_raw()
            assert await anext(pieces) == b"one"
            go_on.set()
            assert await anext(pieces) == b"two"


async def test_a_client_that_leaves_ends_it_at_the_upstream() -> None:
    left = asyncio.Event()

    async def script(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.read() == b""
        left.set()

    async with scripted(script) as upstream, in_front_of(upstream) as address:
        host, _, port = address.partition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(GET)
        await asyncio.sleep(0.2)
        writer.close()
        await asyncio.wait_for(left.wait(), 5)


@pytest.mark.parametrize("script_says", [b"", b"HTTP/1.1 2", b"nonsense\r\n\r\n", b"HTTP/1.1 999 X\r\n\r\n"])
async def test_no_valid_answer_is_a_502(script_says: bytes) -> None:
    async def script(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(script_says)

    async with scripted(script) as upstream, in_front_of(upstream) as address:
        head, _, body = (await ask(address, GET)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 502 ")
    assert json.loads(body)["status"] == 502
    assert b"content-type: application/problem+json" in head


async def test_nobody_there_is_a_502_and_silence_a_504() -> None:
    async with in_front_of("127.0.0.1:9") as address:
        assert (await ask(address, GET)).startswith(b"HTTP/1.1 502 ")

    async def silent(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.read()

    async with scripted(silent) as upstream, in_front_of(upstream, ProxySettings(first_byte=0.2)) as address:
        assert (await ask(address, GET)).startswith(b"HTTP/1.1 504 ")


async def test_half_an_answer_is_not_made_whole() -> None:
    async def half(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")

    async with scripted(half) as upstream, in_front_of(upstream) as address:
        answer = await ask(address, GET)
    assert b"one" in answer
    assert not answer.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize(("method", "times"), [(b"GET", 2), (b"POST", 1)])
async def test_only_what_is_safe_is_repeated(method: bytes, times: int) -> None:
    asked = 0

    async def dies(reader: StreamReader, writer: StreamWriter) -> None:
        nonlocal asked
        await reader.readuntil(b"\r\n\r\n")
        asked += 1

    async with scripted(dies) as upstream, in_front_of(upstream) as address:
        body = b"content-length: 3\r\n\r\nabc" if method == b"POST" else b"\r\n"
        answer = await ask(address, method + b" / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n" + body)
    assert answer.startswith(b"HTTP/1.1 502 ")
    assert asked == times


@pytest.mark.parametrize(
    "request_",
    [
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /a/../b HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
        b"GET /a/%2e%2E/b HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
        b"GET * HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    ],
)
async def test_ambiguous_requests_never_reach_the_upstream(request_: bytes) -> None:
    async def script(reader: StreamReader, writer: StreamWriter) -> None:
        raise AssertionError("the upstream was asked")

    async with scripted(script) as upstream, in_front_of(upstream) as address:
        assert (await ask(address, request_)).startswith(b"HTTP/1.1 400 ")


async def test_a_bad_chunk_is_never_the_end_of_a_body() -> None:
    received = bytearray()

    async def script(reader: StreamReader, writer: StreamWriter) -> None:
        while piece := await reader.read(100):
            received.extend(piece)

    request = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n\r\n"
    async with scripted(script) as upstream, in_front_of(upstream) as address:
        await ask(address, request)
    assert not received.endswith(b"0\r\n\r\n")


async def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    server = uvicorn.Server(uvicorn.Config(ECHO, uds=str(path), log_level="error"))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        async with in_front_of(f"unix:{path}") as address, httpx.AsyncClient() as client:
            assert (await client.get(f"http://{address}/x")).json()["path"] == "/x"
    finally:
        server.should_exit = True
        await task


@pytest.mark.parametrize("text", ["", "localhost:8000", "ftp://a", "http://", "http://a:x", "unix:app.sock", "http://a?b"])
def test_an_upstream_that_cannot_be(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^upstream: "):
        Upstream.parse(text)
