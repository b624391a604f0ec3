"""Every trick that we know to spell a request, against real routers: what they serve was counted, and what an exemption
lets pass is not what is limited."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import hypercorn.asyncio
import hypercorn.config
import pytest
from granian.server.embed import Server as Granian
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Scope

from ratelimit import Limiter, Policy, RateLimitMiddleware
from ratelimit.http.authz import Authz
from tests.http.apps import call, limiter_of, scope_of
from tests.http.routers import OPEN, OVERRIDING_FIELDS, SECRET, SITES, make_folder, overriding, set_up
from tests.http.serving import served
from tests.server.sockets import ask, in_front_of

PLAIN: Final = (("POST", "/hints"), ("GET", "/items/7"), ("GET", "/files/premium/big.zip"), ("GET", "/pages/a"))
POLICIES: Final = (
    Policy(
        "some",
        "1000000/day",
        match=["POST /hints", "GET /items/{id}", "GET /files/premium/**", "/pages/**"],
        exempt="/pages/open",
        user_from=lambda _: "alice",
    ),
    Policy(
        "rest",
        "1000000/day",
        match="/**",
        exempt=["/files/free/**", "GET /hints", "/health", "/pages/open", "/items/none"],
        user_from=lambda _: "alice",
    ),
)
"""Both count what is limited: one says what it is, the other what it is not."""

TRICKS: Final[dict[str, Callable[[str], str]]] = {
    **{f"... {end}": lambda path, end=end: path + end for end in (  # type: ignore[misc]
        "", "%0A", "%0a", "/%0A", "%0D%0A", "%0A%0A", "%00", "%00.txt", "%20", "%09", "/", "//", "/.", "/./", "/x/..",
        "/..", ";", ";x=1", ";/", "%3Bx", "/;x", "#x", "?x", "?", "%23x", "%3Fx", "%2F", "%5C", "\\", "%2F..", "%C2%A0",
        ".", "%", "%c0%af", "%ff", "..;", "/..;/", "...", ".%20.", "::$DATA", "%3A%3a%24data", ":$x",
    )},
    **{f"{start} ...": lambda path, start=start: start + path for start in (  # type: ignore[misc]
        "/", "//", "//z", "///z", "/%2Fz", "/%5Cz", "/\\z", "\\\\z", "/.", "/./.", "/x/..", "/x/%2e%2E", "/%2e",
        "/x/..;", "/;x", "/%0A", "/%00", "/x/..%5c", "/x\\..", "/..", "http://z", "HTTP://z/", "http:", "http:/", "ftp://z",
        "z:", "%20http:", "z:%0A", "z", "/index.php", "/index%2Ephp",
         "/files/..", "/files/free/..", "/health/..", "/pages/open/..",
    )},
    "no slash": lambda path: path[1:],
    "doubled": lambda path: path.replace("/", "//"),
    "doubled, encoded": lambda path: path.replace("/", "/%2F"),
    "doubled inside": lambda path: path[0] + path[1:].replace("/", "//"),
    "dotted": lambda path: path.replace("/", "/./"),
    "dotted, encoded": lambda path: path.replace("/", "/%2e/"),
    "parametrised": lambda path: path.replace("/", "/;a=b/"),
    "parameters": lambda path: path[0] + path[1:].replace("/", ";a/"),
    "backslashes": lambda path: path.replace("/", "\\"),
    "backslashes inside": lambda path: path[0] + path[1:].replace("/", "%5c"),
    "slashes encoded": lambda path: path[0] + path[1:].replace("/", "%2F"),
    "slashes encoded twice": lambda path: path[0] + path[1:].replace("/", "%252F"),
    "a letter encoded": lambda path: f"{path[0]}%{ord(path[1]):02x}{path[2:]}",
    "a letter encoded twice": lambda path: f"{path[0]}%25{ord(path[1]):02x}{path[2:]}",
    "all encoded": lambda path: path[0] + "".join(f"%{ord(letter):02X}" for letter in path[1:]),
    "capitals": str.upper,
    **{f"{end} behind a folder": lambda path, end=end: path.replace("premium/", f"premium{end}/") for end in (  # type: ignore[misc]
        ".", "%20", "%20..", ":$I30:$INDEX_ALLOCATION", "::$INDEX_ALLOCATION",
    )},
    "by the folder's own name": lambda path: path.replace("/files/", "/files/../static/"),
    "by the folder's own name, from further in": lambda path: path.replace("/files/", "/files/free/../../static/"),
    "by a neighbour": lambda path: path.replace("/files/", "/files/free/../"),
    "by a neighbour, encoded": lambda path: path.replace("/files/", "/files/free/%2e%2e/"),
    "by one that is not there": lambda path: path.replace("/premium/", "/premium/none/.././"),
    "a slash within a segment": lambda path: path.replace("/7", "/7%2F8"),
    "a doubled slash before what is open": lambda path: path.replace("/pages/", "/pages//open/"),
    "another that is doubled": lambda path: path.replace("/pages/a", "/pages//open"),
}  # fmt: skip
UNDER_A_ROOT: Final[dict[str, Callable[[str], str]]] = {
    "the root": lambda path: f"/api{path}",
    "no root": lambda path: path,
    "no slash after the root": lambda path: f"/api{path[1:]}",
    "the root further in": lambda path: f"/x/api{path}",
    "the root twice": lambda path: f"/api/api{path}",
    "a doubled slash before the root": lambda path: f"//api{path}",
    "the root behind dots": lambda path: f"/./api{path}",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "tests.docs.django_site")
    return make_folder(tmp_path)


@pytest.fixture(params=SITES)
def site(request: pytest.FixtureRequest, folder: Path) -> Iterator[ASGIApp]:
    with set_up(request.param, folder):
        yield SITES[request.param](folder)


# What stands in front of an app is tried before the most literal of routers and the most lenient one; before all: slow.
BOTH_ENDS: Final = ("starlette", "node")
in_front = pytest.mark.parametrize(
    "site",
    [pytest.param(name, marks=() if name in BOTH_ENDS else pytest.mark.slow) for name in SITES],
    indirect=True,
)


def scope_as_sent(method: str, target: str, **more: Any) -> Scope:
    """As the most lenient of servers would show it."""
    raw, _, query = target.partition("?")
    headers = [(b"host", b"testserver")]
    return scope_of(
        unquote(raw), method=method, headers=headers, raw_path=raw.encode(), query_string=query.encode(),
        scheme="http", http_version="1.1", server=("testserver", 80), asgi={"version": "3.0"},
        **{"root_path": "", **more},
    )  # fmt: skip


async def asked(app: ASGIApp, scope: Scope) -> list[Message]:
    """What is sent to a client that stays."""
    messages = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Message:
        if not messages:
            await asyncio.Event().wait()
        return messages.pop()

    return await call(app, scope, receive)


async def body_of(app: ASGIApp, scope: Scope) -> str:
    """Of an answer with status 200; else nothing."""
    start, *rest = await asked(app, scope)
    return b"".join(message.get("body", b"") for message in rest).decode() if start["status"] == 200 else ""


async def used(limiter: Limiter) -> list[int]:
    return [(await limiter.peek("alice", policy.name)).used for policy in POLICIES]


async def try_all(limiter: Limiter, fetch: Callable[[str, str], Any], tricks: Any = TRICKS) -> set[str]:
    """Every trick on every resource that is limited; `fetch` gives the body. Which of them were served?"""
    served, missed = set(), []
    for method, path in PLAIN:
        requests = [(method, trick(path), name) for name, trick in tricks.items()]
        requests += [(spelled, path, "plain") for spelled in (method.lower(), method.capitalize(), method)]
        for method, target, name in requests:
            before = await used(limiter)
            if SECRET in await fetch(method, target):
                served.add(f"{name}: {method} {target}")
                if any(now == then for now, then in zip(await used(limiter), before, strict=True)):
                    missed.append(f"{name}: {method} {target}")
    assert missed == []
    return served


EASY: Final = {f"plain: {method} {path}" for method, path in PLAIN}


async def test_whatever_a_router_serves_was_counted(site: ASGIApp) -> None:
    limiter = limiter_of(*POLICIES)
    app = RateLimitMiddleware(site, limiter=limiter)
    assert await try_all(limiter, lambda method, target: body_of(app, scope_as_sent(method, target))) >= EASY


@pytest.mark.heavy
async def test_whatever_a_router_serves_under_a_root_path_was_counted(site: ASGIApp) -> None:
    limiter = limiter_of(*POLICIES)
    app = RateLimitMiddleware(site, limiter=limiter)
    some = ("... ", "... %0A", "no slash", "// ...", "doubled", "dotted", "a letter encoded", "parametrised")
    tricks = {
        f"{root} {name}": lambda path, name=name, rooted=rooted: rooted(TRICKS[name](path))
        for root, rooted in UNDER_A_ROOT.items()
        for name in some
    }

    async def fetch(method: str, target: str) -> str:
        return await body_of(app, scope_as_sent(method, target, root_path="/api"))

    assert await try_all(limiter, fetch, tricks)


@pytest.mark.heavy
async def test_whatever_a_mounted_app_serves_was_counted(site: ASGIApp) -> None:
    limiter = limiter_of(*POLICIES)
    outer = Starlette(routes=[Mount("/api", RateLimitMiddleware(site, limiter=limiter))])
    assert await try_all(limiter, lambda method, target: body_of(outer, scope_as_sent(method, f"/api{target}")))


@pytest.mark.parametrize(
    ("name", "method", "target"),
    [
        ("starlette", "POST", "/hints%0A"),
        ("fastapi", "POST", "/hints%0A"),
        ("starlette", "GET", "/files/free/../premium/big.zip"),
        ("starlette", "GET", "/files/./premium/big.zip"),
        ("starlette", "GET", "/files/%2e%2e/static/premium/big.zip"),
        ("litestar", "GET", "/files/../static/premium/big.zip"),
        ("litestar", "POST", "hints"),
        ("django", "post", "/hints"),
        ("django", "GET", "/files/../static/premium/big.zip"),
        ("flask", "post", "/hints"),
        ("flask", "POST", "hints"),
        ("flask", "GET", "/files/free/../premium/big.zip"),
        ("node", "POST", "//z/hints"),
        ("node", "POST", "/x\\..\\hints"),
        ("node", "GET", "/items/7%2F8"),
        ("windows", "GET", "/files/premium./big.zip%20."),
        ("windows", "GET", "/files/premium:$I30:$INDEX_ALLOCATION/big.zip::$DATA"),
    ],
)
async def test_the_tricks_work_where_nobody_counts(folder: Path, name: str, method: str, target: str) -> None:
    """Were no trick served by anybody, the tests above would prove nothing."""
    with set_up(name, folder):
        assert await body_of(SITES[name](folder), scope_as_sent(method, target)) == SECRET


async def until_listening(port: int) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                (await asyncio.open_connection("127.0.0.1", port))[1].close()
                return
            except OSError:
                await asyncio.sleep(0.02)


@asynccontextmanager
async def on_granian(app: ASGIApp) -> AsyncIterator[str]:
    """Its embedded server takes no port 0, so one is kept for it, which nobody else is given meanwhile."""
    with socket.socket() as kept:
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        kept.bind(("127.0.0.1", 0))
        port = kept.getsockname()[1]
        server = Granian(app, address="127.0.0.1", port=port, interface="asgi", log_enabled=False)  # type: ignore[arg-type]
        task = asyncio.create_task(server.serve())
        try:
            await until_listening(port)
            yield f"127.0.0.1:{port}"
        finally:
            server.stop()
            await task


@asynccontextmanager
async def on_hypercorn(app: ASGIApp) -> AsyncIterator[str]:
    listener, stop = socket.create_server(("127.0.0.1", 0)), asyncio.Event()
    port = listener.getsockname()[1]
    config = hypercorn.config.Config()
    config.bind, config.errorlog = [f"fd://{listener.detach()}"], None
    task = asyncio.create_task(hypercorn.asyncio.serve(app, config, shutdown_trigger=stop.wait))  # type: ignore[arg-type]
    try:
        await until_listening(port)
        yield f"127.0.0.1:{port}"
    finally:
        stop.set()
        await task


SERVERS: Final[dict[str, Callable[[ASGIApp], Any]]] = {
    "uvicorn h11": lambda app: served(app, http="h11", log_level="critical"),
    "uvicorn httptools": lambda app: served(app, http="httptools", log_level="critical"),
    "granian": on_granian,
    "hypercorn": on_hypercorn,
}


def over(address: str) -> Callable[[str, str], Any]:
    """A client that sends what it is told, byte by byte."""

    async def fetch(method: str, target: str) -> str:
        end = " HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        answer = await ask(address, f"{method} {target}{end}".encode())
        return answer.partition(b"\r\n\r\n")[2].decode() if b" 200" in answer.partition(b"\r\n")[0] else ""

    return fetch


@pytest.mark.heavy
@pytest.mark.parametrize(("name", "server"), [*(("starlette", server) for server in SERVERS), ("flask", "uvicorn h11")])
async def test_whatever_is_served_over_a_real_server_was_counted(name: str, server: str, folder: Path) -> None:
    limiter = limiter_of(*POLICIES)
    async with SERVERS[server](RateLimitMiddleware(SITES[name](folder), limiter=limiter)) as address:
        assert await try_all(limiter, over(address)) >= EASY


@pytest.mark.heavy
@in_front
async def test_whatever_is_served_behind_the_sidecar_was_counted(site: ASGIApp) -> None:
    limiter = limiter_of(*POLICIES)
    async with (
        served(site, http="h11", log_level="critical") as upstream,
        in_front_of(upstream, limiter=limiter) as address,
    ):
        assert await try_all(limiter, over(address)) >= EASY


@pytest.mark.heavy
@in_front
@pytest.mark.parametrize("way", ["forwarded", "original", "suffix"])
async def test_whatever_the_decision_endpoint_allows_was_counted(site: ASGIApp, way: str) -> None:
    limiter = limiter_of(*POLICIES)
    authz = Authz(limiter=limiter)

    async def fetch(method: str, target: str) -> str:
        if way == "suffix":
            question = scope_as_sent(method, f"/v1/authz{target}")
        else:
            question = scope_as_sent("GET", "/v1/authz" + ("?dialect=nginx" if way == "original" else ""))
            fields = {f"x-{way}-uri": target, f"x-{way}-method": method}
            question["headers"] += [(name.encode(), value.encode()) for name, value in fields.items()]
        (start, *_) = await asked(authz, question)
        return await body_of(site, scope_as_sent(method, target)) if start["status"] == 200 else ""

    assert await try_all(limiter, fetch) >= EASY


WAYS_TO_OVERRIDE: Final = (
    *((field, value, "") for field in OVERRIDING_FIELDS for value in ("POST", "post", " Post ", "POST, GET")),
    *((field.replace("-", "_"), "POST", "") for field in OVERRIDING_FIELDS),
    ("x_http-method_override", "POST", ""),
    *(
        ("accept", "*/*", query)
        for query in ("_method=POST", "a=b&_method=post", "_%6dethod=%50OST", "_method=POST&_method=GET")
    ),
)


@pytest.mark.parametrize("surface", ["middleware", "sidecar", "authz"])
async def test_whatever_is_asked_for_by_another_method_was_counted(surface: str, folder: Path) -> None:
    limiter = limiter_of(*POLICIES)
    site = overriding(SITES["starlette"](folder))
    async with AsyncExitStack() as stack:
        if surface == "sidecar":
            upstream = await stack.enter_async_context(served(site, log_level="critical"))
            address = await stack.enter_async_context(in_front_of(upstream, limiter=limiter))
        else:
            app = RateLimitMiddleware(site, limiter=limiter) if surface == "middleware" else Authz(limiter=limiter)
            address = await stack.enter_async_context(served(app, log_level="critical"))
        prefix = "/v1/authz" if surface == "authz" else ""
        for number, (field, value, query) in enumerate(WAYS_TO_OVERRIDE, 1):
            head = f"GET {prefix}/hints?{query} HTTP/1.1\r\nhost: a\r\n{field}: {value}\r\nconnection: close\r\n\r\n"
            answer = await ask(address, head.encode())
            assert surface == "authz" or answer.endswith(SECRET.encode()), (field, value, query)
            assert await used(limiter) == [number, number], (field, value, query)
        await ask(address, f"GET {prefix}/hints HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".encode())
        assert await used(limiter) == [number, number]


_DETOURS: Final = ("", ".", "%2e", "none/..", "free/..", "%2E%2e/static", "free/../../static", ";a/..;")


@st.composite
def wanderings(draw: Any) -> tuple[str, str]:
    """A resource, its segments with ways around between them, and some tricks on top."""
    method, path = draw(st.sampled_from(PLAIN))
    detours = st.lists(st.sampled_from(_DETOURS), max_size=2)
    target = "".join("".join(f"/{one}" for one in (segment, *draw(detours))) for segment in path[1:].split("/"))
    for trick in draw(st.lists(st.sampled_from(sorted(TRICKS)), max_size=2)):
        target = TRICKS[trick](target)
    return method, target


@given(request=wanderings())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@pytest.mark.parametrize("name", ["starlette", "node"])
async def test_whatever_the_tricks_are_composed_to_is_counted(folder: Path, name: str, request: Any) -> None:
    limiter = limiter_of(*POLICIES)
    app = RateLimitMiddleware(SITES[name](folder), limiter=limiter)
    body = await body_of(app, scope_as_sent(*request))
    assert body != SECRET or await used(limiter) == [1, 1]


async def test_what_is_open_stays_open(site: ASGIApp) -> None:
    limiter = limiter_of(*POLICIES)
    app = RateLimitMiddleware(site, limiter=limiter)
    for target in ("/hints", "/health", "/pages/open", "/files/free/small.txt"):
        assert await body_of(app, scope_as_sent("GET", target)) == OPEN
        await body_of(app, scope_as_sent("GET", f"{target}/"))
    assert await used(limiter) == [0, 0]
