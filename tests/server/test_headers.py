"""Who a request is from, in the sidecar: known by what the upstream sees of it, and by nothing else."""

from __future__ import annotations

import pytest

from ratelimit.http.addresses import Addresses
from ratelimit.policy import Policy
from ratelimit.server.headers import RequestHeaders
from ratelimit.server.request import Request
from ratelimit.server.upstream import ProxySettings, Upstream
from tests.http.apps import limiter_of, scope_of
from tests.server.sockets import OK, answering, ask, connected, in_front_of


@pytest.mark.parametrize(
    "connection",
    [b"x-api-key", b"close, X-Api-Key", b"x-api-key , keep-alive", b"X-API-KEY\r\nconnection: close", b",x-api-key,"],
)
async def test_nobody_is_identified_by_what_the_upstream_does_not_see(connection: bytes) -> None:
    """Each made-up key would be a fresh quota, while the upstream knows only one stranger (RFC 9110, 7.6.1)."""
    limiter = limiter_of(Policy("api", "2/day", match="/**"))
    async with answering(OK) as (upstream, heads), in_front_of(upstream, limiter=limiter) as address:
        answers = []
        for key in range(4):
            fields = b"host: a\r\nx-api-key: made-up-%d\r\nconnection: %b\r\n" % (key, connection)
            async with connected(address) as (reader, writer):
                writer.write(b"GET / HTTP/1.1\r\n%b\r\n" % fields)
                answers.append((await reader.readuntil(b"\r\n"))[9:12])
    assert answers == [b"200", b"200", b"429", b"429"]
    assert not any(b"made-up" in head for head in heads)
    assert all(b"x-ratelimit-user: ip:127.0.0.1" in head.lower() for head in heads)


async def test_connection_does_not_take_away_what_frames_or_tells_of_the_way() -> None:
    named = b"host, content-length, x-request-id, x-forwarded-for, transfer-encoding, upgrade, expect"
    async with answering(OK) as (upstream, heads), in_front_of(upstream) as address:
        fields = b"host: a\r\ncontent-length: 2\r\nx-request-id: one\r\nconnection: close, %b\r\n" % named
        answer = await ask(address, b"POST / HTTP/1.1\r\n%b\r\nhi" % fields)
    assert answer.startswith(b"HTTP/1.1 200 ")
    (head,) = heads
    for field in (b"content-length: 2", b"x-request-id: one", b"x-forwarded-for: 127.0.0.1", b"x-forwarded-host: a"):
        assert field in head.lower()


async def test_a_peer_is_trusted_alike_by_the_limit_and_by_what_the_upstream_is_told() -> None:
    """A socket for both families shows IPv4 peers as mapped addresses."""
    for peer in ("127.0.0.1", "::ffff:127.0.0.1"):
        scope = scope_of(client=(peer, 1), headers=[(b"x-forwarded-for", b"203.0.113.7")], scheme="http")
        assert Addresses(["127.0.0.0/8"]).of(scope) == "ip:203.0.113.7"
        request = Request(0.0)
        request.scope, request.headers = scope, scope["headers"]
        head = b"".join(RequestHeaders(ProxySettings(), Upstream.parse("http://a"), ["127.0.0.0/8"]).write(request, ""))
        assert f"\r\nx-forwarded-for: 203.0.113.7, {peer}\r\n".encode() in head
        assert b"\r\nforwarded: " not in head


async def test_forwarded_is_continued_where_a_trusted_peer_has_sent_it() -> None:
    """Begun here it would say that the peer is the client: Rack believes it before all else."""
    request = Request(0.0)
    request.scope = scope_of(client=("127.0.0.1", 1), scheme="http")
    request.headers = [(b"forwarded", b"for=203.0.113.7;proto=https")]
    head = b"".join(RequestHeaders(ProxySettings(), Upstream.parse("http://a"), 1).write(request, ""))
    assert b"\r\nforwarded: for=203.0.113.7;proto=https, for=127.0.0.1;" in head
