"""What the connection answers itself is what the app behind it would: gateways' questions, and plain checks."""

from __future__ import annotations

import re

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from ratelimit import Config, Limiter, MemoryStore, Policy
from ratelimit.factory import decision_app, middleware_args
from ratelimit.http.authz import Authz
from ratelimit.server.asgi import AsgiExchange, AsgiService
from ratelimit.server.connection import ClientConnection
from ratelimit.server.decisions import CheckRequest, Decisions, Question
from ratelimit.server.exchange import Exchange
from ratelimit.server.listener import Service
from ratelimit.server.request import Request
from ratelimit.testing import FakeClock
from tests.server.sockets import ask, listening
from tests.server.test_connection import WEBSOCKET


def no_pages(request: object) -> int:
    raise HTTPException(400, "pages is no number")


async def no_tenant(connection: HTTPConnection) -> str:
    return connection.headers["x-tenant"]


CONFIG = Config(
    user_from=("header:x-api-key",),
    exempt=("/free/**",),
    api_token="a-token-of-16-letters",
    policies=(
        Policy("hint", "2/day", match="POST /hints"),
        Policy("paid", "1/day; 3/week", match="/paid/**", cost=2),
        Policy("shadow", "1/day", match="/shadow", mode="shadow"),
        Policy("failed", "1/day", match="/login", count="failure"),
        Policy("export", "3/day", match="/pages", count="success"),
        Policy("pages", "3/day", match="/pages", cost=no_pages),
        Policy("bug", "1/day", match="/bug", user_from=lambda connection: connection.headers["x-tenant"]),
        Policy("waits", "1/day", match="/waits", user_from=no_tenant),
        Policy("nobody", "1/day", match="/nobody", user_from=lambda connection: ""),
    ),
)
_TOKEN = b"authorization: Bearer a-token-of-16-letters\r\n"
_JSON = b"content-type: application/json\r\n"


def question(target: bytes, fields: bytes = b"", method: bytes = b"POST", body: bytes = b"") -> bytes:
    length = b"content-length: %d\r\n" % len(body) if body else b""
    return b"%b %b HTTP/1.1\r\nhost: a\r\nx-api-key: alice\r\n%b%b\r\n%b" % (method, target, fields, length, body)


def check(body: bytes, fields: bytes = _TOKEN + _JSON, method: bytes = b"POST") -> bytes:
    return question(b"/v1/check", fields, method, body)


FAILING = [b"/bug", b"/waits", b"/nobody"]
FORWARDED = b"x-forwarded-method: POST\r\nx-forwarded-uri: /hints?a=1\r\n"
CASES: dict[str, list[bytes]] = {
    "allowed, and refused": [question(b"/v1/authz/hints")] * 3,
    "fields": [question(b"/v1/authz", FORWARDED)] * 3,
    "a body of the question": [question(b"/v1/authz/hints", body=b"hello")] * 3,
    "nginx": [question(b"/v1/authz?dialect=nginx", FORWARDED.replace(b"forwarded", b"original"))] * 3,
    "another dialect": [question(b"/v1/authz?dialect=apache", FORWARDED)],
    "no question": [question(b"/v1/authz")],
    "no method": [question(b"/v1/authz", b"x-forwarded-uri: /hints\r\n")],
    "dots": [question(b"/v1/authz/a/../hints")],
    "nothing limits it": [question(b"/v1/authz/other", method=b"GET")],
    "exempt": [question(b"/v1/authz/free/hints")],
    "two quotas": [question(b"/v1/authz/paid/x")],
    "in shadow": [question(b"/v1/authz/shadow")] * 2,
    "counted by outcome": [question(b"/v1/authz/login")] * 2,
    "rejected by a function": [question(b"/v1/authz/pages")] * 2,
    "functions that fail": [question(b"/v1/authz" + path) for path in FAILING],
    "functions that fail, for nginx": [
        question(b"/v1/authz?dialect=nginx", FORWARDED.replace(b"forwarded", b"original").replace(b"/hints", path))
        for path in FAILING
    ],
    "HEAD": [question(b"/v1/authz/paid/x", method=b"HEAD")] * 2,
    "a handshake": [question(b"/v1/authz/paid/x", WEBSOCKET, b"GET")],
    "beside it": [question(b"/v1/authzoo/hints")],
    "a check": [check(b'{"user": "bob", "action": "hint"}')] * 3,
    "a check in chunks": [
        b"POST /v1/check HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n%b\r\n" % (_TOKEN + _JSON)
        + b'21\r\n{"user": "bob", "action": "hint"}\r\n0\r\n\r\n'
    ],
    "a check sent again": [check(b'{"user": "bob", "action": "hint"}', _TOKEN + _JSON + b"idempotency-key: k\r\n")] * 2,
    "no token": [check(b'{"user": "bob", "action": "hint"}', _JSON)],
    "another token": [check(b"{}", _JSON + b"authorization: Bearer another\r\n")],
    "no JSON": [check(b"user=bob", _TOKEN + b"content-type: text/plain\r\n"), check(b"user", _TOKEN + _JSON)],
    "an unknown action": [check(b'{"user": "bob", "action": "nothing"}')],
    "an unknown field": [check(b'{"user": "bob", "action": "hint", "units": 3}')],
    "too large": [check(b" " * 300_000)],
    "no body": [check(b"")],
    "another method": [check(b"", method=b"GET")],
    "all else": [question(b"/v1/openapi.json", method=b"GET"), question(b"/nothing", method=b"GET")],
}


@pytest.mark.parametrize("requests", CASES.values(), ids=CASES)
async def test_the_same_answers_either_way(requests: list[bytes]) -> None:
    directly, behind = [await answers(service, requests) for service in (counting(), AsgiService(app()))]
    assert directly == behind
    assert all(answer.startswith(b"HTTP/1.1 ") for answer in directly)


@pytest.mark.parametrize("method", [b"FROB", b"get", b"CONNECT"])
async def test_no_method_has_a_gateway_let_the_request_pass(method: bytes) -> None:
    """As Envoy does upon a 5xx, where `failure_mode_allow` is set."""
    (answer,) = await answers(counting(), [question(b"/v1/authz/hints", method=method)])
    assert answer.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("path", FAILING)
async def test_no_fault_has_a_gateway_let_the_request_pass(path: bytes) -> None:
    (answer,) = await answers(counting(), [question(b"/v1/authz" + path)])
    assert answer.startswith(b"HTTP/1.1 429 ")


async def test_it_is_the_connection_that_answers() -> None:
    service = counting()
    await answers(service, [question(b"/v1/authz/hints"), check(b"{}"), question(b"/v1/openapi.json")])
    assert service.kinds == [Question, CheckRequest, AsgiExchange]


def app() -> Authz:
    store = MemoryStore()
    limiter = Limiter(store, CONFIG.policies, clock=FakeClock())
    return decision_app(CONFIG, store=store, args=middleware_args(CONFIG, limiter))


def counting() -> AnswerCounter:
    authz = app()
    return AnswerCounter(Decisions(authz, authz))


class AnswerCounter(Service):
    """Remembers who has answered. It stands around the service: one that is compiled has no subclasses of Python's."""

    def __init__(self, service: Decisions) -> None:
        self._service = service
        self.kinds: list[type[Exchange]] = []

    async def start(self) -> None:
        await self._service.start()

    async def end(self) -> None:
        await self._service.end()

    def exchange(self, connection: ClientConnection, request: Request) -> Exchange:
        exchange = self._service.exchange(connection, request)
        self.kinds.append(type(exchange))
        return exchange


async def answers(service: Service, requests: list[bytes]) -> list[bytes]:
    """Each on a connection of its own, but for the date and ids."""
    async with listening(service) as address:
        came = [
            await ask(address, request.replace(b"host: a\r\n", b"host: a\r\nconnection: close\r\n"))
            for request in requests
        ]
    return [re.sub(rb"date: [^\r]*|\"id\":\"[^\"]*\"", b"", answer) for answer in came]
