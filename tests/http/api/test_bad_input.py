"""What nobody should send, over real sockets where the server has a say: a clear problem, and never a traceback."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from ratelimit import ConfigError, MemoryStore, StoreUnavailable, UsageLog, load_config
from ratelimit.factory import check_api_token, decision_app
from ratelimit.http.api import Api, app
from tests.http.api.clients import service_on
from tests.http.apps import call, client_of, limiter_of, scope_of, used
from tests.http.serving import served

SECRET = "0123456789abcdef"
JSON = {"content-type": "application/json"}
ALICE = b'{"user": "alice", "action": "hint"}'


def api(**options: Any) -> Api:
    store = MemoryStore()
    return Api(limiter_of(store=store), store, **options)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"nonsense", "not valid JSON"),
        (b'{"user": "\xff", "action": "hint"}', "not UTF-8"),
        (b'{"user": "\\ud800", "action": "hint"}', "not valid JSON"),
        (b'{"user": "alice", "action": "hint", "cost": NaN}', "not valid JSON"),
        (b'{"user": "alice", "action": "hint", "cost": 1e400}', "cost: "),
        (b'{"user": "alice", "action": "hint", "cost": 99999999999999999999}', "cost: "),
        (b'{"user": "alice", "action": "hint", "metadata": ' + b'{"a":' * 40_000, "nested too deeply"),
        (b'{"user": "a\\u0000b", "action": "hint"}', "user: the user holds the control character"),
        (b'{"user": "%s", "action": "hint"}' % ("ä" * 200).encode(), "user: the user takes 400 bytes"),
        (b'{"user": "alice", "action": "hint", "quotas": ""}', "quotas: "),
        (b'{"user": "alice", "action": "hint", "quotas": "5/day; 6/day"}', "quotas: two quotas per day"),
        (b'{"user": "alice", "action": "hint", "quotas": "5/day burst 9"}', "burst needs algorithm = 'gcra'"),
        (b'{"user": "alice", "action": "hint", "algorithm": "guess"}', "algorithm: Invalid enum value 'guess'"),
        (b'{"user": "alice", "action": "hint", "user": true}', "user: Expected 'int | str', got 'bool'"),
    ],
)
async def test_bodies(body: bytes, told: str) -> None:
    store = MemoryStore()
    limiter = limiter_of(store=store)
    async with client_of(Api(limiter, store)) as client:
        answer = await client.post("/v1/check", content=body, headers=JSON)
        assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
        assert told in answer.json()["detail"]
        assert await used(limiter, "alice") == 0


async def test_bad_metadata_spends_nothing() -> None:
    """At some depth it can be read, and not be written any more: below 1,000 on Python 3.11, about 10,000 on 3.13."""
    counts: dict[int, int] = {}
    async with service_on(MemoryStore()) as service:
        for depth in (*range(50, 1500, 50), *range(8_000, 13_000, 500), 30_000):
            user = f"user-{depth}"
            deep = b'{"a":' * depth + b"1" + b"}" * depth
            body = b'{"user": "%s", "action": "hint", "metadata": %s}' % (user.encode(), deep)
            status = (await service.client.post("/v1/check", content=body, headers=JSON)).status_code
            assert await used(service.limiter, user) == {200: 1, 400: 0}[status]
            counts[status] = counts.get(status, 0) + 1
    assert set(counts) == {200, 400}


async def test_an_unknown_policy_is_named() -> None:
    async with client_of(api()) as client:
        for verb in ("check", "peek", "charge", "refund"):
            answer = await client.post(f"/v1/{verb}", json={"user": "alice", "action": "hitn", "cost": 1})
            assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
            assert "hitn" in answer.json()["detail"]


async def test_over_real_sockets() -> None:
    async with served(api(token=SECRET)) as address, httpx.AsyncClient(base_url=f"http://{address}") as client:
        client.headers["authorization"] = f"Bearer {SECRET}"
        many = {f"x-{number}": "y" * 4000 for number in range(25)}
        answer = await client.post("/v1/check", content=ALICE, headers={**JSON, **many})
        assert (answer.status_code, answer.json()["used"]) == (200, 1), "100 KB of fields are none of our business"
        answer = await client.post("/v1/check", content=ALICE, headers={**JSON, "authorization": "x" * 100_000})
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        answer = await client.post("/v1/check", content=ALICE, headers={**JSON, "idempotency-key": "x" * 100_000})
        assert answer.status_code == 400
        answer = await client.post("/v1/check", content=b" " * 1_000_000, headers=JSON)
        assert (answer.status_code, answer.json()["title"]) == (413, "Too large")
        answer = await client.head("/v1/users")
        assert (answer.status_code, answer.content) == (200, b"")
        answer = await client.request("TRACE", "/v1/users")
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
        answer = await client.get("/v1/users/alice/usage/eventz")
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


@pytest.mark.parametrize(
    "given",
    ["", "Bearer", "Bearer wrong", f"Basic {SECRET}", f"Bearer {SECRET}x", f"Bearer {SECRET[:-1]}", "Bearer é"],
)
async def test_a_refusal_says_nothing_about_the_token(given: str) -> None:
    async with client_of(api(token=SECRET)) as client:
        answers = [
            await client.get(path, headers=[(b"authorization", given.encode("latin-1"))])
            for path in ("/v1/users", "/v1/users/%FF", "/v1/nothing", "/v1/users?limit=x")
        ]
        assert {answer.status_code for answer in answers} == {401}
        assert len({answer.content for answer in answers}) == 1, "nor about what there is"
        assert SECRET not in answers[0].text


class BrokenStore(MemoryStore):
    """Fails in a way that nobody has thought of, or in one that everybody has."""

    error: Exception = ZeroDivisionError("a secret detail")

    async def delete(self, key: object) -> None:
        raise self.error

    async def read(self, key: object) -> Any:
        raise self.error


async def test_a_fault_of_ours_is_a_problem_too_and_is_logged() -> None:
    store = BrokenStore()
    app = Api(limiter_of(store=store), store)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("no body is read")

    with pytest.raises(ZeroDivisionError):  # for the server, which logs it
        await app(scope_of("/v1/users/alice/usage/totals", method="GET"), receive, send)
    assert (sent[0]["status"], dict(sent[0]["headers"])[b"content-type"]) == (500, b"application/problem+json")
    assert b"secret" not in sent[1]["body"]


async def test_a_store_that_is_down() -> None:
    store = BrokenStore()
    store.error = StoreUnavailable("cannot reach table 'limits' at https://secret.example")
    async with client_of(Api(limiter_of(store=store), store)) as client:
        answer = await client.get("/v1/users/alice/usage/totals")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["type"].endswith("#temporary-reduced-capacity")
        assert "secret" not in answer.text


async def test_a_body_that_ends_early_spends_nothing() -> None:
    store = MemoryStore()
    limiter = limiter_of(store=store)
    messages = [{"type": "http.request", "body": ALICE, "more_body": True}, {"type": "http.disconnect"}]

    async def receive() -> Any:
        return messages.pop(0)

    headers = [(b"content-type", b"application/json")]
    sent = await call(Api(limiter, store), scope_of("/v1/check", headers=headers), receive)
    assert sent[0]["status"] == 400
    assert await used(limiter, "alice") == 0


@pytest.mark.parametrize("begun", [b"", b"{"])
async def test_a_body_that_does_not_arrive_is_given_up(begun: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "MAX_BODY_S", 0.05)
    head = b"POST /v1/check HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n"
    async with served(api()) as address:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(head + begun)
        answer = await asyncio.wait_for(reader.read(), 30)  # until it is closed
        writer.close()
        await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"A body has 0.05 s to arrive" in answer


async def test_beyond_loopback_a_token_is_needed() -> None:
    config = load_config(env={})
    for host in ("127.0.0.1", "::1", "localhost", None):
        check_api_token(config, host)
    for host in ("0.0.0.0", "::", "10.0.0.5", "example.com"):
        with pytest.raises(ConfigError, match=r"api_token: .* set RATELIMIT_API_TOKEN"):
            decision_app(config, host=host)
    check_api_token(load_config(env={"RATELIMIT_API_TOKEN": SECRET}), "0.0.0.0")
    with pytest.raises(ConfigError, match="api_token: expected at least 16") as caught:
        load_config(env={"RATELIMIT_API_TOKEN": "short-secret"})
    assert "short-secret" not in str(caught.value)


async def test_the_configured_token_is_asked_for() -> None:
    app = decision_app(load_config(env={}, api_token=SECRET, policies={"hint": {"quotas": "5/day"}}))
    async with client_of(app) as client:
        assert (await client.get("/v1/users")).status_code == 401
        assert (await client.get("/v1/users", headers={"authorization": f"Bearer {SECRET}"})).status_code == 200
        # A gateway is known by where it stands.
        forwarded = {"x-forwarded-uri": "/free", "x-forwarded-method": "GET"}
        assert (await client.get("/v1/authz", headers=forwarded)).status_code == 200


async def test_repeats_at_the_same_time_are_carried_out_once() -> None:
    store = MemoryStore()
    limiter = limiter_of(store=store)
    async with UsageLog(store), client_of(Api(limiter, store)) as client:
        headers = {**JSON, "idempotency-key": "one"}
        asking = [client.post("/v1/check", content=ALICE, headers=headers) for _ in range(20)]
        answers = await asyncio.gather(*asking)
        assert len({answer.content for answer in answers}) == 1
        assert await used(limiter, "alice") == 1
