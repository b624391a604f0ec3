"""Through real sockets: what the upstream gets, and what the client gets."""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ratelimit import ConfigError, Policy
from ratelimit.server.upstream import Upstream
from tests.http.apps import limiter_of
from tests.http.serving import served
from tests.server.sockets import GET, OK, answering, ask, in_front_of, scripted


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


ECHO = Starlette(routes=[Route("/{path:path}", _echo, methods=["GET", "POST", "DELETE"])])


async def test_what_the_upstream_is_told() -> None:
    headers = [
        ("X-API-Key", "alice"), ("X-RateLimit-User", "root"), ("X_RateLimit_User", "root"),
        ("X_Api_Key", "bob"), ("X_Tenant-Id", "other"), ("X_Mine_Too", "1"), ("X-Forwarded-For", "1.2.3.4"),
        ("X-Real-IP", "1.2.3.4"), ("Connection", "keep-alive, x-mine"), ("X-Mine", "1"), ("TE", "trailers"),
        ("X-Twice", "1"), ("X-Twice", "2"), ("X-Request-ID", "id-7"), ("Host", "shop.example"),
        ("X-Original-URL", "/free"), ("X_Rewrite_URL", "/free"),
    ]  # fmt: skip
    limiter = limiter_of(
        Policy("tenants", "10/day", user_from="header:x-tenant-id"), Policy("all", "10/day", match="/**")
    )
    async with (
        served(ECHO) as upstream,
        in_front_of(upstream, limiter=limiter) as address,
        httpx.AsyncClient() as client,
    ):
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
    assert not {"x_ratelimit_user", "x_api_key", "x_tenant-id", "x-real-ip", "x-mine"} & set(told)
    assert not {"x-original-url", "x_rewrite_url"} & set(told)
    assert (told["te"], told["connection"]) == (["trailers"], ["te"])
    assert told["x_mine_too"] == ["1"]
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
        assert f"r={max(0, 10 - used)};" in answer.headers["ratelimit"]
        assert (await limiter.peek("alice", "api")).used == used


async def test_a_stated_cost_of_what_does_not_count_is_not_charged() -> None:
    limiter = limiter_of(Policy("api", "10/day", match="/**", count="success"))
    async with served(ECHO) as upstream, in_front_of(upstream, limiter=limiter) as address:
        async with httpx.AsyncClient(headers={"x-api-key": "alice"}) as client:
            assert (await client.get(f"http://{address}/?cost=5&status=500")).status_code == 500
    await limiter.open()
    assert (await limiter.peek("alice", "api")).used == 0


async def test_a_stated_cost_is_charged_to_each_policy_that_was_checked() -> None:
    policies = [Policy("all", "100/day", match="/**"), Policy("post", "100/day", match="POST /**")]
    policies += [Policy("free", "9/day", match="/**", cost=lambda _: 0), Policy("other", "9/day", match="/x")]
    limiter = limiter_of(*policies)
    async with served(ECHO) as upstream, in_front_of(upstream, limiter=limiter) as address:
        async with httpx.AsyncClient(headers={"x-api-key": "alice"}) as client:
            await client.get(f"http://{address}/?cost=17")
            await client.post(f"http://{address}/?cost=3")
    await limiter.open()
    used = {name: (await limiter.peek("alice", name)).used for name in ("all", "post", "free", "other")}
    assert used == {"all": 20, "post": 3, "free": 0, "other": 0}


async def test_a_client_cannot_state_a_cost() -> None:
    limiter = limiter_of(Policy("api", "10/day", match="/**"))
    async with answering(OK) as (upstream, heads), in_front_of(upstream, limiter=limiter) as address:
        await ask(address, GET[:-2] + b"x-ratelimit-cost: 0\r\n\r\n")
    assert b"cost" not in heads[0].lower()
    await limiter.open()
    assert (await limiter.peek("ip:127.0.0.1", "api")).used == 1


@pytest.mark.parametrize(
    "name", ["content_length", "transfer_encoding", "x_forwarded_for", "X_Real_IP", "Via_", "_host"]
)
async def test_a_field_is_not_let_in_under_a_disguise(name: str) -> None:
    """What CGI and WSGI would take for the field with dashes; anything else is the upstream's business."""
    async with answering(OK) as (upstream, heads), in_front_of(upstream) as address:
        await ask(address, GET[:-2] + name.encode() + b": 3\r\n\r\n")
    assert (name.lower().encode() + b": 3" in heads[0].lower()) == (name in ("Via_", "_host"))


async def test_the_id_of_a_request_is_not_left_behind() -> None:
    """Whatever `Connection` says: the access log knows the request by it."""
    async with answering(OK) as (upstream, heads), in_front_of(upstream) as address:
        hop = b"connection: x-request-id, x-hop, close\r\nx-request-id: id-7\r\nx-hop: 1\r\n\r\n"
        answer = await ask(address, b"GET / HTTP/1.1\r\nhost: a\r\n" + hop)
    assert b"x-request-id: id-7" in answer
    assert b"x-request-id: id-7" in heads[0].lower()
    assert b"x-hop" not in heads[0].lower()


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_an_answer_without_a_body_has_none(status: bytes) -> None:
    answer = b"HTTP/1.1 " + status + b"\r\ncontent-length: 5\r\netag: a\r\n\r\n"
    async with answering(answer) as (upstream, _), in_front_of(upstream) as address:
        head, _, body = (await ask(address, GET)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + status)
    assert b"content-length" not in head
    assert body == b""


async def test_head_is_answered_with_the_length_of_what_get_would_send() -> None:
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n"
    async with answering(answer) as (upstream, _), in_front_of(upstream) as address:
        head, _, body = (await ask(address, GET.replace(b"GET", b"HEAD"))).partition(b"\r\n\r\n")
    assert b"content-length: 5000" in head
    assert body == b""


async def test_a_body_that_ends_with_the_connection() -> None:
    async with answering(b"HTTP/1.0 200 OK\r\n\r\nuntil the end") as (upstream, _), in_front_of(upstream) as address:
        head, _, body = (await ask(address, GET)).partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head
    assert body == b"d\r\nuntil the end\r\n0\r\n\r\n"


async def test_hints_before_the_answer_are_passed_over() -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
    async with answering(hints + OK) as (upstream, _), in_front_of(upstream) as address:
        assert (await ask(address, GET)).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_trailers_of_an_answer_pass() -> None:
    """But for those that would say what only a header section may (RFC 9110, 6.5.1)."""
    trailers = b"x-sum: 1\r\nset-cookie: a=1\r\nx-ratelimit-cost: 9\r\n"
    answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n2\r\nok\r\n0\r\n%b\r\n" % trailers
    async with answering(answer) as (upstream, _), in_front_of(upstream) as address:
        came = await ask(address, GET)
    assert came.endswith(b"\r\n\r\n2\r\nok\r\n0\r\nx-sum: 1\r\n\r\n")
    assert b"\r\ntrailer: x-sum\r\n" in came


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


@pytest.mark.parametrize(
    "text", ["", "localhost:8000", "ftp://a", "http://", "http://a:x", "unix:app.sock", "http://a?b"]
)
def test_an_upstream_that_cannot_be(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^upstream: "):
        Upstream.parse(text)
