"""A request is answered alike, whether it comes by ASGI or by WSGI: one table, through both."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

import pytest
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse

import ratelimit
from ratelimit import Policy, RateLimitMiddleware
from ratelimit.sync import UsageLog
from ratelimit.testing import FakeClock
from ratelimit.wsgi import RateLimitMiddleware as WSGIMiddleware
from tests.http import apps as asgi
from tests.wsgi.apps import Reply, call, environ_of, hello, limiter_of


class Ask(NamedTuple):
    target: str = "/hints"
    method: str = "POST"
    headers: tuple[tuple[str, str], ...] = ()
    address: str = "203.0.113.7"
    root: str = ""


def key(name: str) -> tuple[tuple[str, str], ...]:
    return (("x-api-key", name),)


def units(request: Any) -> int:
    units = request.query_params.get("pages", "1")
    if not units.isdecimal():
        raise HTTPException(400, "pages is no number")
    return int(units)


async def units_later(request: Any) -> int:
    return units(request)


def teapot(request: Any, decision: Any) -> PlainTextResponse:
    return PlainTextResponse(f"no more {decision.policy} on {request.url.path}", 418)


HINT = Policy("hint", "2/day", match="POST /hints")
POSTS = [Ask()] * 4
FAILS = (("x-status", "500"),)

CASES: dict[str, tuple[list[Policy], dict[str, Any], list[Ask]]] = {
    "matching": ([HINT], {}, [Ask(method="GET"), Ask("/other"), *POSTS, Ask("/hints/"), Ask(method="post")]),
    "spellings": (
        [HINT],
        {},
        [Ask("/%68ints"), Ask("//x/hints"), Ask("/hints%0A"), Ask("/hints;x=1"), Ask("/hi%2Fnts")],
    ),
    "encoded below a root": (
        [Policy("item", "1/day", match="/items/{id}")],
        {},
        [Ask("/items/a%2Fb", root="/api"), Ask("/items/a%2Fb", root="/api"), Ask("/items/a/b", root="/api")],
    ),
    "encoded slashes": (
        [Policy("item", "2/day", match="/items/{id}")],
        {},
        [
            Ask("/items/a%2Fb"),
            Ask("/items/a/b"),
            Ask("/items/ü".replace("ü", "%C3%BC")),
            Ask("/items/%FF"),
            Ask("/items/z"),
        ],
    ),
    "a root": (
        [HINT],
        {},
        [
            Ask("/hints", root="/api"),
            Ask("/hints", root="/api"),
            Ask("/hints", root="/api"),
            Ask("/other", root="/api"),
        ],
    ),
    "several quotas": ([Policy("hint", ["2/minute", "3/day"], match="/**")], {}, [*POSTS, *POSTS]),
    "two policies": (
        [Policy("api", "5/day", match="/**"), HINT],
        {},
        [*POSTS, Ask("/other"), Ask("/other"), Ask("/other"), Ask("/other")],
    ),
    "a header": (
        [HINT],
        {"user_from": ["header:x-api-key", "address"]},
        [
            Ask(headers=key("alice")),
            Ask(headers=key("alice")),
            Ask(headers=key("alice")),
            Ask(headers=key("ip:1.2.3.4")),
            Ask(headers=key("böb")),
            *POSTS,
        ],
    ),
    "credentials": (
        [HINT],
        {"user_from": "header:authorization"},
        [Ask(headers=(("authorization", f"{scheme} abc"),)) for scheme in ("Bearer", "bearer", "BEARER ")],
    ),
    "a cookie": (
        [HINT],
        {"user_from": "cookie:uid"},
        [Ask(headers=(("cookie", text),)) for text in ("uid=alice", 'uid="alice"', "x=1; uid=%61lice", "uid=bob", "")],
    ),
    "addresses": ([HINT], {}, [Ask(address=f"2001:db8::{number}") for number in range(4)] + POSTS),
    "trusted proxies": (
        [HINT],
        {"trusted_proxies": 1},
        [Ask(headers=(("x-forwarded-for", f"9.9.9.{number}, 1.2.3.4"),)) for number in range(3)]
        + [Ask(headers=(("x-forwarded-for", "1.2.3.5"),))],
    ),
    "no proxy is trusted": (
        [HINT],
        {},
        [Ask(headers=(("x-forwarded-for", f"9.9.9.{number}"),)) for number in range(3)],
    ),
    "a function": (
        [HINT],
        {"user_from": [lambda request: request.query_params.get("who")]},
        [Ask("/hints?who=a"), Ask("/hints?who=a"), Ask("/hints?who=a"), Ask("/hints?who=b"), *POSTS],
    ),
    "exempt": ([HINT], {"exempt": ["POST /hints", lambda request: "x-free" in request.headers]}, POSTS),
    "exempt by a policy": (
        [Policy("api", "1/day", match="/**", exempt="/health")],
        {},
        [Ask("/health"), Ask("/x"), Ask("/health"), Ask("/x"), Ask("/health/../x")],
    ),
    "a cost": (
        [Policy("export", "10/day", match="/exports", cost=units)],
        {},
        [
            Ask("/exports?pages=7"),
            Ask("/exports?pages=4"),
            Ask("/exports?pages=3"),
            Ask("/exports?pages=0"),
            Ask("/exports?pages=11"),
            Ask("/exports?pages=x"),
        ],
    ),
    "a cost that never waits": (
        [Policy("export", "10/day", match="/exports", cost=units_later)],
        {},
        [Ask("/exports?pages=7"), Ask("/exports?pages=4")],
    ),
    "counted where it succeeds": (
        [Policy("hint", "2/day", match="/**", count="success")],
        {},
        [*[Ask(headers=FAILS)] * 4, *POSTS],
    ),
    "counted where it fails": (
        [Policy("hint", "2/day", match="/**", count="failure")],
        {},
        [*POSTS, *[Ask(headers=FAILS)] * 3, Ask()],
    ),
    "counted by a function": (
        [Policy("hint", "2/day", match="/**", count=lambda response: response.status_code == 302)],
        {},
        [*POSTS, *[Ask(headers=(("x-status", "302"),))] * 3],
    ),
    "shadow": ([Policy("hint", "1/day", match="/**", mode="shadow"), Policy("api", "2/day", match="/**")], {}, POSTS),
    "sliding": ([Policy("hint", "2/day", match="/**", algorithm="sliding_window")], {}, POSTS),
    "gcra": ([Policy("hint", "2/minute burst 3", match="/**", algorithm="gcra")], {}, [*POSTS, Ask()]),
    "legacy fields": ([HINT], {"headers": "legacy"}, POSTS),
    "both": ([HINT], {"headers": "both"}, POSTS),
    "no fields": ([HINT], {"headers": "none"}, POSTS),
    "an answer of one's own": ([HINT], {"on_refused": teapot}, POSTS),
    "HEAD": ([Policy("hint", "1/day", match="GET /hints")], {}, [Ask(method="HEAD")] * 2),
    "nothing at all": ([Policy("hint", "0/day", match="/**")], {}, [Ask()]),
}


async def by_asgi(policies: list[Policy], options: dict[str, Any], asks: list[Ask]) -> tuple[list[Reply], Any]:
    clock = FakeClock()
    limiter = asgi.limiter_of(*policies, clock=clock)
    replies = []
    async with ratelimit.UsageLog(limiter.store, actions=limiter.policies, clock=clock) as usage:  # type: ignore[arg-type]
        app = RateLimitMiddleware(asgi.hello, limiter=limiter, usage=usage, **options)
        for ask in asks:
            path, _, query = ask.target.partition("?")
            raw = (ask.root + path).encode()
            scope = asgi.scope_of(
                unquote_to_bytes(raw).decode("utf-8", "replace"),
                method=ask.method,
                headers=[(b"host", b"127.0.0.1"), *[(name.encode(), value.encode()) for name, value in ask.headers]],
                client=(ask.address, 50000),
                root_path=ask.root,
                raw_path=raw,
                query_string=query.encode(),
            )
            start, *parts = await asgi.call(app, scope)
            headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in start["headers"]]
            body = b"".join(part.get("body", b"") for part in parts)
            replies.append(Reply(start["status"], headers, b"" if ask.method == "HEAD" else body))
        await usage.flush()
        return replies, recorded([event for user in USERS for event in (await usage.events(user)).events])


def by_wsgi(policies: list[Policy], options: dict[str, Any], asks: list[Ask]) -> tuple[list[Reply], Any]:
    clock = FakeClock()
    limiter = limiter_of(*policies, clock=clock)
    with UsageLog(limiter.store, actions=limiter.policies, clock=clock) as usage:
        app = WSGIMiddleware(without_body_of_heads, limiter=limiter, usage=usage, **options)
        replies = []
        for ask in asks:
            path, _, query = ask.target.partition("?")
            environ = environ_of(
                unquote_to_bytes(path).decode("latin-1"),
                method=ask.method,
                headers=[(name, value.encode().decode("latin-1")) for name, value in ask.headers],
                address=ask.address,
                root=ask.root,
                RAW_URI=ask.root + ask.target,
                QUERY_STRING=query,
            )
            replies.append(call(app, environ) if ask.method.isupper() else unvalidated(app, environ))
        usage.flush()
        return replies, recorded([event for user in USERS for event in usage.events(user).events])


USERS = [
    "ip:203.0.113.7",
    "ip:2001:db8::/64",
    "ip:1.2.3.4",
    "ip:1.2.3.5",
    "alice",
    "bob",
    "böb",
    "a",
    "b",
    "Bearer abc",
]


def recorded(events: Iterable[Any]) -> list[tuple[object, ...]]:
    return sorted(
        (event.user, event.action, event.cost, event.allowed, event.status, event.resource, str(event.metadata))
        for event in events
    )


def without_body_of_heads(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    body = hello(environ, start_response)
    return [] if environ["REQUEST_METHOD"] == "HEAD" else body


def unvalidated(app: Any, environ: dict[str, Any]) -> Reply:
    """What the validator takes for no method."""
    started: list[Any] = []
    body = b"".join(app(environ, lambda status, headers: started.append((status, headers))))
    ((status, headers),) = started
    return Reply(int(status[:3]), headers, body)


@pytest.mark.parametrize("case", CASES)
async def test_asgi_and_wsgi_answer_alike(case: str) -> None:
    policies, options, asks = CASES[case]
    wanted, events = await by_asgi(policies, options, asks)
    found, kept = await asyncio.to_thread(by_wsgi, policies, options, asks)
    for number, (one, other) in enumerate(zip(wanted, found, strict=True)):
        assert (one.status, sorted(one.headers), one.body) == (other.status, sorted(other.headers), other.body), number
    assert events == kept
    # Refusals, and what is admitted, of nearly every case.
    assert len({one.status for one in wanted}) > 1 or case in ("exempt", "nothing at all")
