"""The decision endpoint's answers, and which request a question is about."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import httpx
import pytest

from ratelimit import MemoryStore, Policy, StoreUnavailable, UsageLog
from ratelimit.http.authz import Authz
from tests.http.apps import call, client_of, headers_of, limiter_of, scope_of, used
from tests.http.spellings import DOTTED, PLAIN, UNCLEAR

HINT = Policy("hint", "5/day", match="POST /hints")
FORWARDED = {"x-forwarded-method": "POST", "x-forwarded-uri": "/hints?a=1"}
ORIGINAL = {"x-original-method": "POST", "x-original-uri": "/hints?a=1"}


def asking(*policies: Policy, **options: Any) -> httpx.AsyncClient:
    return client_of(Authz(limiter=limiter_of(*policies or (HINT,)), **options))


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE", "OPTIONS"])
async def test_forwarded_fields_by_any_method(method: str) -> None:
    async with asking() as client:
        for _ in range(5):
            answer = await client.request(method, "/v1/authz", headers=FORWARDED)
            assert (answer.status_code, answer.content) == (200, b"")
        answer = await client.request(method, "/v1/authz", headers=FORWARDED)
        assert answer.status_code == 429
        assert bool(answer.content) == (method != "HEAD")


async def test_the_path_suffix_keeps_the_method_and_the_query() -> None:
    seen: list[Any] = []

    def user(asked: Any) -> str:
        seen.append(asked.url.query)
        return "alice"

    policy = Policy("hint", "5/day", match="POST /hints", user_from=user)
    async with asking(policy) as client:
        assert (await client.post("/v1/authz/hints?a=1")).headers["ratelimit"] == '"hint";r=4;t=43200'
        assert "ratelimit" not in (await client.get("/v1/authz/hints")).headers
        assert "ratelimit" not in (await client.post("/v1/authz/")).headers
    assert seen == ["a=1"]


async def test_the_suffix_goes_before_what_a_client_may_send() -> None:
    async with asking() as client:
        answer = await client.post("/v1/authz/hints?dialect=nginx", headers={"x-forwarded-uri": "/free"})
        assert answer.headers["ratelimit"] == '"hint";r=4;t=43200'


async def test_each_dialect_reads_its_own_fields() -> None:
    free = {"x-original-method": "GET", "x-original-uri": "/free"}
    async with asking() as client:
        assert "ratelimit" in (await client.get("/v1/authz", headers={**FORWARDED, **free})).headers
        free = {"x-forwarded-method": "GET", "x-forwarded-uri": "/free"}
        for dialect in ("nginx", "haproxy"):
            answer = await client.get(f"/v1/authz?dialect={dialect}", headers={**ORIGINAL, **free})
            assert "ratelimit" in answer.headers


async def test_nginx_gets_every_refusal_as_a_403() -> None:
    async with asking(Policy("hint", "1/day", match="POST /hints")) as client:
        assert (await client.get("/v1/authz?dialect=nginx", headers=ORIGINAL)).status_code == 200
        answer = await client.get("/v1/authz?dialect=nginx", headers=ORIGINAL)
        assert (answer.status_code, answer.headers["x-rl-status"]) == (403, "429")
        assert answer.headers["retry-after"] == "43200"
        answer = await client.get("/v1/authz?dialect=nginx")
        assert (answer.status_code, answer.headers["x-rl-status"]) == (403, "400")


@pytest.mark.parametrize(("status", "seen"), [(402, 402), (500, 429), (503, 429), (504, 429)])
async def test_no_template_makes_a_refusal_a_fault_of_the_endpoint(status: int, seen: int) -> None:
    policy = Policy("hint", "0/day", match="/**", refusal={"status": status, "body": "No."})
    async with asking(policy) as client:
        answer = await client.get("/v1/authz/hints")
        assert (answer.status_code, answer.text) == (seen, "No.")
        answer = await client.get("/v1/authz?dialect=nginx", headers=ORIGINAL)
        assert (answer.status_code, answer.headers["x-rl-status"]) == (403, str(seen))


@pytest.mark.parametrize(
    ("path", "headers", "said"),
    [
        ("/v1/authz", {}, "which request"),
        ("/v1/authz", ORIGINAL, "dialect=nginx"),
        ("/v1/authz?dialect=haproxy", FORWARDED, "which request"),
        ("/v1/authz", {"x-forwarded-uri": "/hints"}, "which method"),
        ("/v1/authz?dialect=nginxx", ORIGINAL, "unknown value"),
        ("/v1/authz/", FORWARDED, "slash at its end"),
        ("/v1/authz", {**FORWARDED, "x-forwarded-uri": "hints"}, "start with /"),
        ("/v1/authz", {**FORWARDED, "x-forwarded-uri": ""}, "start with /"),
        ("/v1/authz", {**FORWARDED, "x-forwarded-method": "GET /"}, "no method"),
    ],
)
async def test_a_question_that_makes_no_sense_is_a_400(path: str, headers: dict[str, str], said: str) -> None:
    async with asking() as client:
        answer = await client.get(path, headers=headers)
        assert answer.status_code == 400
        assert said in answer.json()["detail"]


@pytest.mark.parametrize(("uri", "said"), [*((uri, "dot segments") for uri in DOTTED), *UNCLEAR.items()])
async def test_paths_that_two_readers_take_for_different_ones_are_refused(uri: str, said: str) -> None:
    async with asking() as client:
        for dialect, family in (("plain", "forwarded"), ("nginx", "original"), ("haproxy", "original")):
            headers = {f"x-{family}-uri": uri, f"x-{family}-method": "POST"}
            answer = await client.get(f"/v1/authz?dialect={dialect}", headers=headers)
            assert answer.headers.get("x-rl-status", str(answer.status_code)) == "400"
            assert said in answer.json()["detail"]
        raw = scope_of("/v1/authz" + unquote(uri), raw_path=b"/v1/authz" + uri.encode())
        assert (await call(Authz(limiter=limiter_of(HINT)), raw))[0]["status"] == 400


@pytest.mark.parametrize("uri", ["/fetch/http://example.com", "/fetch/a://b/c?d=e://f", "http://a/fetch/http://b"])
async def test_an_address_within_a_path_is_a_part_of_it(uri: str) -> None:
    async with asking(Policy("fetch", "9/day", match="GET /fetch/*/**")) as client:
        for dialect, family in (("plain", "forwarded"), ("nginx", "original"), ("haproxy", "original")):
            headers = {f"x-{family}-uri": uri, f"x-{family}-method": "GET"}
            assert "ratelimit" in (await client.get(f"/v1/authz?dialect={dialect}", headers=headers)).headers
        assert "ratelimit" in (await client.get("/v1/authz" + uri.removeprefix("http://a"))).headers


@pytest.mark.parametrize("uri", [*PLAIN, "http://evil/hints", "/hints?x=../y", "/hints?x=a://b/c", "/hints#a"])
async def test_ways_to_write_a_path(uri: str) -> None:
    async with asking() as client:
        headers = {"x-forwarded-method": "post", "x-forwarded-uri": uri}
        assert "ratelimit" in (await client.get("/v1/authz", headers=headers)).headers


@pytest.mark.parametrize("uri", ["/caf%C3%A9", "/café", "/caf%c3%a9/", "/café?x"])
async def test_a_path_in_utf_8_is_the_same_as_encoded(uri: str) -> None:
    """nginx passes on what it got."""
    headers = {b"x-original-method": b"GET", b"x-original-uri": uri.encode()}
    async with asking(Policy("menu", "9/day", match="GET /café")) as client:
        answer = await client.get("/v1/authz?dialect=nginx", headers=headers)
        assert "ratelimit" in answer.headers


class DownStore(MemoryStore):
    async def apply(self, *_: Any, **__: Any) -> Any:
        raise StoreUnavailable("down")


async def test_never_a_5xx() -> None:
    policy = Policy("hint", "5/day", match="POST /hints", on_unavailable="deny")
    async with client_of(Authz(limiter=limiter_of(policy, store=DownStore()))) as client:
        answer = await client.post("/v1/authz/hints")
        body = answer.json()
        assert (answer.status_code, body["status"]) == (429, 429)
        assert body["type"].endswith("#temporary-reduced-capacity")
        assert int(answer.headers["content-length"]) == len(answer.content)
        assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize("count", ["success", "failure"])
async def test_what_is_allowed_counts_whatever_the_outcome(count: Any) -> None:
    limiter = limiter_of(Policy("hint", "5/day", match="POST /hints", count=count))
    async with client_of(Authz(limiter=limiter)) as client:
        await client.post("/v1/authz/hints")
    assert await used(limiter) == 1


async def test_identity_exemptions_and_host_are_those_of_the_original() -> None:
    hosts: list[Any] = []
    policy = Policy("hint", "1/day", match="/**", user_from=lambda asked: hosts.append(asked.url.hostname))
    async with asking(policy, trusted_proxies=1, exempt="/health") as client:
        for number in (1, 2):
            headers = {**FORWARDED, "x-forwarded-for": f"198.51.100.{number}", "x-forwarded-host": "api.example"}
            assert (await client.get("/v1/authz", headers=headers)).status_code == 200
        assert (await client.get("/v1/authz", headers=headers)).status_code == 429
        for _ in range(3):
            assert (await client.get("/v1/authz/health")).status_code == 200
    assert hosts == ["api.example"] * 3


async def test_a_handshake_is_matched_as_one_and_answered() -> None:
    authz = Authz(limiter=limiter_of(Policy("feed", "1/day", match="WEBSOCKET /feed")))
    scope = scope_of(
        "/v1/authz/feed", kind="websocket", extensions={"websocket.http.response": {}}, headers=[(b"upgrade", b"x")]
    )
    start, _ = await call(authz, scope)
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 200)
    start, body = await call(authz, scope)
    assert (start["status"], body["type"]) == (429, "websocket.http.response.body")
    headers = {**FORWARDED, "x-forwarded-uri": "/feed", "x-forwarded-method": "GET", "upgrade": "websocket"}
    async with client_of(authz) as client:
        assert (await client.get("/v1/authz", headers=headers)).status_code == 429


# nginx, Traefik and HAProxy's script take `Upgrade` away; of one over HTTP/2 there is no key (RFC 8441).
@pytest.mark.parametrize(
    "handed_on", [{"upgrade": "websocket"}, {"sec-websocket-key": "a" * 22 + "=="}, {"sec-websocket-version": "13"}]
)
async def test_a_handshake_is_known_by_what_gateways_hand_on_of_it(handed_on: dict[str, str]) -> None:
    headers = {**FORWARDED, "x-forwarded-uri": "/feed", "x-forwarded-method": "GET", **handed_on}
    async with asking(Policy("feed", "1/day", match="WEBSOCKET /feed")) as client:
        assert [(await client.get("/v1/authz", headers=headers)).status_code for _ in range(2)] == [200, 429]


async def test_who_says_a_request_is_a_handshake_is_not_exempt_by_that() -> None:
    headers = {**FORWARDED, "x-forwarded-uri": "/feed", "x-forwarded-method": "GET", "upgrade": "websocket"}
    async with asking(Policy("feed", "1/day", match="GET /feed", exempt="WEBSOCKET /feed")) as client:
        assert [(await client.get("/v1/authz", headers=headers)).status_code for _ in range(2)] == [200, 429]
    async with asking(Policy("feed", "1/day", match="GET /feed", exempt="GET /feed")) as client:
        assert [(await client.get("/v1/authz", headers=headers)).status_code for _ in range(2)] == [200, 200]


async def test_questions_are_recorded_as_what_they_ask_about() -> None:
    limiter = limiter_of(HINT)
    store = limiter.store
    assert isinstance(store, MemoryStore)
    async with UsageLog(store, clock=limiter.clock) as usage:
        async with client_of(Authz(limiter=limiter, usage=usage)) as client:
            await client.get("/v1/authz", headers=FORWARDED)
        await usage.flush()
        (event,) = (await usage.events("ip:203.0.113.7")).events
        assert (event.action, event.resource, event.allowed) == ("hint", "/hints", True)


@pytest.mark.parametrize("path", ["/v1/authzz", "/", "/v1"])
async def test_other_paths_are_not_ours(path: str) -> None:
    start, _ = await call(Authz(limiter=limiter_of()), scope_of(path))
    assert start["status"] == 404
    assert headers_of(start)["content-type"] == "application/problem+json"


async def test_nobody_is_identified_by_a_field_for_this_hop_only() -> None:
    """A gateway that keeps to RFC 9110, 7.6.1 takes it out on the way to the app."""
    async with asking(user_from="header:x-api-key", trusted_proxies=1) as client:
        answers = []
        for key in range(7):
            hop = {
                "connection": "x-api-key, x-forwarded-for",
                "x-api-key": f"made-up {key}",
                "x-forwarded-for": "1.1.1.1",
            }
            answers.append((await client.get("/v1/authz", headers={**FORWARDED, **hop})).status_code)
        assert answers == [200] * 5 + [429] * 2
        other = await client.get(
            "/v1/authz", headers={**FORWARDED, "x-forwarded-for": "2.2.2.2", "connection": "close"}
        )
        assert other.status_code == 200
