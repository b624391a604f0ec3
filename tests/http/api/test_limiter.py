"""The native API: verbs, batches, bad input, repeats."""

from __future__ import annotations

import asyncio
import threading
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any

import httpx
import pytest

from ratelimit import MemoryStore, Policy, StoreUnavailable, UsageLog, load_config
from ratelimit.config.settings import policy_document
from ratelimit.factory import decision_app
from ratelimit.http.api import Api
from ratelimit.http.api.app import MAX_BODY
from ratelimit.store import Store
from ratelimit.testing import FakeClock
from tests.http.apps import client_of, limiter_of, used
from tests.http.serving import served
from tests.limiter.stores import FailingStore, failing

ALICE = {"user": "alice", "action": "hint"}
SECRET = "0123456789abcdef"


def api(*, counters: Store | None = None, **options: Any) -> httpx.AsyncClient:
    store = MemoryStore()
    return client_of(Api(limiter_of(store=counters or store), store, **options))


async def test_the_verbs() -> None:
    async with api() as client:
        answer = await client.post("/v1/check", json={**ALICE, "cost": 2})
        decision = answer.json()
        assert (answer.status_code, decision["allowed"], decision["remaining"]) == (200, True, 3)
        assert decision["quotas"][0] == {
            "quota": "5/day", "limit": 5, "used": 2, "remaining": 3, "reset_after": 43200.0, "retry_after": 0.0,
        }  # fmt: skip
        assert (await client.post("/v1/peek", json=ALICE)).json()["used"] == 2
        assert (await client.post("/v1/charge", json={**ALICE, "cost": 9})).json()["used"] == 11
        refused = await client.post("/v1/check", json=ALICE)
        assert (refused.status_code, refused.json()["allowed"], refused.json()["reason"]) == (200, False, "quota")
        assert (await client.post("/v1/refund", json={**ALICE, "cost": 8, "at": decision["at"]})).status_code == 204
        assert (await client.post("/v1/peek", json=ALICE)).json()["used"] == 3
        assert (await client.post("/v1/reset", json=ALICE)).status_code == 204
        assert (await client.post("/v1/peek", json=ALICE)).json()["used"] == 0
        own = {"user": "bob", "action": "other", "quotas": "2/hour", "algorithm": "gcra"}
        assert (await client.post("/v1/check", json=own)).json()["limit"] == 2


async def test_a_refund_names_the_decision_that_it_gives_back() -> None:
    store, body = FailingStore(), {"user": "alice", "action": "own", "quotas": "10/day"}
    for algorithm in ("fixed_window", "sliding_window", "gcra"):
        ask = {**body, "user": algorithm, "algorithm": algorithm}
        # Two processes: either gives back what the other one has taken.
        async with api(counters=store) as client, api(counters=store) as other:

            async def check(**more: Any) -> dict[str, Any]:
                answer = await client.post("/v1/check", json={**ask, **more})  # noqa: B023
                return dict(answer.json())

            async def refund(**of: Any) -> int:
                return (await other.post("/v1/refund", json=of)).status_code

            first, second = await check(cost=4), await check(cost=6)
            store.fault = failing(StoreUnavailable("down"))
            unasked = await check()
            store.fault = None
            refused = await check()
            assert (refused["allowed"], unasked["reason"]) == (False, "unavailable")
            for nothing in (refused, unasked):
                assert await refund(decision=nothing["id"]) == 204
            assert (await client.post("/v1/peek", json=ask)).json()["used"] == 10
            for cost in ({"cost": 1}, {}, {}, {"cost": 3}):
                assert await refund(decision=first["id"], **cost) == 204
            assert (await client.post("/v1/peek", json=ask)).json()["used"] == 6
            assert await refund(decision=second["id"]) == 204
            assert (await client.post("/v1/peek", json=ask)).json()["used"] == 0


async def test_a_decision_is_given_back_under_one_name_only() -> None:
    """Base64 and msgpack may both be written in several ways, and what was given back is known by the id."""
    async with api() as client:
        first = (await client.post("/v1/check", json={**ALICE, "cost": 2})).json()["id"]
        await client.post("/v1/check", json={**ALICE, "cost": 3})
        assert (await client.post("/v1/refund", json={"decision": first})).status_code == 204
        packed = urlsafe_b64decode(first + "=" * (-len(first) % 4))
        longer = urlsafe_b64encode(b"\xdc\x00" + packed[:1].replace(b"\x96", b"\x06") + packed[1:]).decode().rstrip("=")
        for other in (f"{first}=", f"{first}!", f" {first}", f"{first[:9]}\n{first[9:]}", f"{first}====", longer):
            assert (await client.post("/v1/refund", json={"decision": other})).status_code == 400, other
        assert (await client.post("/v1/peek", json=ALICE)).json()["used"] == 3


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"decision": "nonsense"}, "decision"),
        ({"decision": "lqVhbGljZQ"}, "decision"),
        ({"decision": "äöü"}, "decision"),
        ({"decision": "x", "user": "alice"}, "user"),
        ({"decision": "x", "at": "2026-01-05T12:00:00Z"}, "at"),
        ({"action": "hint"}, "user"),
        ({"user": "alice"}, "action"),
        ({**ALICE, "at": 1_767_614_400_000}, "at"),
        ({**ALICE, "at": "2026-01-05T12:00:00"}, "at"),
        ({**ALICE, "cost": 0}, "cost"),
    ],
)
async def test_a_refund_of_nothing_that_is_known(body: dict[str, Any], path: str) -> None:
    async with api() as client:
        answer = await client.post("/v1/refund", json=body)
        assert (answer.status_code, [one["path"] for one in answer.json()["errors"]]) == (400, [path])


async def test_a_batch_is_decided_one_by_one() -> None:
    checks = [ALICE, {**ALICE, "cost": 5}, {"user": "bob", "action": "unknown"}]
    async with api() as client:
        results = (await client.post("/v1/check/batch", json={"checks": checks})).json()["results"]
        assert [result.get("decision", {}).get("allowed") for result in results] == [True, False, None]
        assert results[2]["problem"]["status"] == 404
        answer = await client.post("/v1/check/batch", json={"checks": [ALICE, {**ALICE, "cost": 0}]})
        assert (answer.status_code, answer.json()["errors"][0]["path"]) == (400, "checks[1].cost")
        assert (await client.post("/v1/peek", json=ALICE)).json()["used"] == 1


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"user": "alice"}, ""),
        ({**ALICE, "cost": "1"}, "cost"),
        ({**ALICE, "cost": 1.5}, "cost"),
        ({**ALICE, "cots": 1}, ""),
        ({**ALICE, "user": ""}, "user"),
        ({**ALICE, "quotas": "5/fortnight"}, "quotas"),
        ([], ""),
    ],
)
async def test_bad_bodies_name_the_path(body: Any, path: str) -> None:
    async with api() as client:
        answer = await client.post("/v1/check", json=body)
        assert answer.status_code == 400
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["errors"][0]["path"] == path


async def test_what_is_no_request_of_ours() -> None:
    async with api() as client:
        json = {"content-type": "application/json"}
        assert (await client.post("/v1/check", content=b"{", headers=json)).status_code == 400
        assert (await client.post("/v1/check", content=b" " * (MAX_BODY + 1), headers=json)).status_code == 413
        assert (await client.post("/v1/check", content=b"{}")).status_code == 415
        assert (await client.get("/v1/check")).headers["allow"] == "POST"
        assert (await client.post("/v1/chek", json=ALICE)).status_code == 404


async def test_a_repeat_spends_nothing_and_reads_the_same() -> None:
    clock = FakeClock()
    store = MemoryStore()
    limiter = limiter_of(Policy("hint", "5/day"), clock=clock, store=store)
    async with client_of(Api(limiter, store)) as client:
        key = {"idempotency-key": "one"}
        first = await client.post("/v1/check", json=ALICE, headers=key)
        again = await client.post("/v1/check", json=ALICE, headers=key)
        assert again.content == first.content
        assert again.headers["idempotency-replayed"] == "true"
        assert await used(limiter, "alice") == 1
        assert (await client.post("/v1/check", json={**ALICE, "cost": 2}, headers=key)).status_code == 422
        clock.advance(599.9)
        assert "idempotency-replayed" in (await client.post("/v1/check", json=ALICE, headers=key)).headers
        clock.advance(0.1)
        assert "idempotency-replayed" not in (await client.post("/v1/check", json=ALICE, headers=key)).headers
        assert await used(limiter, "alice") == 2


async def test_a_token() -> None:
    async with api(token=SECRET) as client:
        for given in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {SECRET}"}):
            assert (await client.post("/v1/check", json=ALICE, headers=given)).status_code == 401
        right = {"authorization": f"bearer {SECRET}"}
        assert (await client.post("/v1/check", json=ALICE, headers=right)).status_code == 200


async def test_a_batch_is_decided_together() -> None:
    org = {"user": "acme", "action": "org", "quotas": "7/day"}
    store = MemoryStore()
    usage = UsageLog(store, clock=FakeClock())
    async with usage, client_of(Api(limiter_of(store=store), store, usage=usage)) as client:

        async def ask(*checks: dict[str, Any]) -> Any:
            return (await client.post("/v1/check/batch", json={"checks": checks, "together": True})).json()

        def told(answer: Any) -> list[tuple[bool, int]]:
            return [(one["decision"]["allowed"], one["decision"]["used"]) for one in answer["results"]]

        passed = await ask({**ALICE, "cost": 4}, {**org, "cost": 4})
        assert (passed["allowed"], told(passed)) == (True, [(True, 4), (True, 4)])
        refused = await ask({**ALICE, "user": "bob", "cost": 4}, {**org, "cost": 4})
        assert (refused["allowed"], told(refused)) == (False, [(True, 0), (False, 4)])
        assert (await ask(ALICE, ALICE))["status"] == 400
        assert (await ask(ALICE, {"user": "bob", "action": "unknown"}))["status"] == 404
        assert (await client.post("/v1/peek", json=ALICE)).json()["used"] == 4
    assert [(one.user, one.cost, one.allowed) for one in store.events] == [
        ("alice", 4, True),
        ("acme", 4, True),
        ("bob", 0, True),
        ("acme", 4, False),
    ]


async def test_a_malformed_check_keeps_the_whole_batch_from_spending() -> None:
    for bad, path in (
        ({"quotas": "5/fortnight"}, "checks[1].quotas"),
        ({"user": "a\nb"}, "checks[1].user"),
        ({"action": "#" * 60}, "checks[1].action"),
    ):
        async with api() as client:
            answer = await client.post("/v1/check/batch", json={"checks": [ALICE, {**ALICE, **bad}]})
            assert (answer.status_code, answer.json()["errors"][0]["path"]) == (400, path)
            assert (await client.post("/v1/peek", json=ALICE)).json()["used"] == 0


@pytest.mark.parametrize(
    ("log", "sample", "written"),
    [
        ("all", 1.0, [True, False, False]),
        ("allowed", 1.0, [True]),
        ("denied", 1.0, [False, False]),
        ("none", 1.0, []),
        ("all", 0.0, [True]),
    ],
)
async def test_the_policy_says_what_is_logged(log: Any, sample: float, written: list[bool]) -> None:
    store = MemoryStore()
    limiter = limiter_of(Policy("hint", "1/day", log=log, log_sample=sample), store=store)
    async with UsageLog(store, clock=limiter.clock) as usage, client_of(Api(limiter, store, usage=usage)) as client:
        for _ in range(3):
            await client.post("/v1/check", json=ALICE)
        await client.post("/v1/peek", json=ALICE)
        await usage.flush()
        events = (await client.get("/v1/users/alice/usage/events")).json()["events"]
        assert sorted((one["allowed"] for one in events), reverse=True) == written


GUARDED = [
    ("PUT", "/v1/users/alice"),
    ("DELETE", "/v1/users/alice"),
    ("POST", "/v1/users/alice/erase"),
    ("POST", "/v1/reset"),
    ("POST", "/v1/check"),
    ("GET", "/v1/users"),
    ("GET", "/v1/nowhere"),
]


@pytest.mark.parametrize(("method", "path"), GUARDED)
@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "evil.example:8080", "origin": "http://evil.example:8080"},
        {"host": "127.0.0.1.evil.example"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
    ],
)
async def test_without_a_token_no_page_of_others_is_answered(method: str, path: str, headers: dict[str, str]) -> None:
    """As the admin listener: a name that is pointed at 127.0.0.1 makes a page of anybody's one of this address."""
    limiter = limiter_of()
    await limiter.check("alice", "hint")
    async with client_of(Api(limiter, limiter.store)) as client:  # type: ignore[arg-type]
        answer = await client.request(method, path, json=ALICE, headers=headers)
        assert (answer.status_code, answer.json()["title"]) == (403, "Forbidden")
        assert (await client.get("/v1/users/alice")).status_code == 404
        assert (await client.get("/v1/openapi.json", headers=headers)).status_code == 200
    assert await used(limiter, "alice") == 1


async def test_by_an_address_or_with_the_token_it_is_asked() -> None:
    async with api() as client:
        for host in ("127.0.0.1:8080", "localhost", "localhost:8080", "[::1]:8080", "10.1.2.3"):
            assert (await client.post("/v1/check", json=ALICE, headers={"host": host})).status_code == 200
    async with api(token=SECRET) as client:
        by_name = {"host": "limits.internal", "origin": "https://ours.example", "authorization": f"Bearer {SECRET}"}
        assert (await client.post("/v1/check", json=ALICE, headers=by_name)).status_code == 200


async def test_policies_are_listed_without_holding_up_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand of them are 2.6 MB, which are written once."""
    listing, answered = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    written: list[str] = []

    def write(policy: Policy) -> dict[str, Any]:
        loop.call_soon_threadsafe(listing.set)
        assert answered.wait(60), "nobody was answered meanwhile"
        written.append(policy.name)
        return policy_document(policy)

    monkeypatch.setattr("ratelimit.http.api.limiter.policy_document", write)
    async with api() as client:
        asking = asyncio.create_task(client.get("/v1/policies"))
        await listing.wait()
        assert (await client.post("/v1/check", json=ALICE)).json()["allowed"]
        answered.set()
        answer = (await asking).json()
        assert answer == (await client.get("/v1/policies")).json()
        assert answer["policies"]["hint"]["quotas"] == ["5/day"]
    assert len(written) == len(answer["policies"])


# The decision endpoint and the API on one limiter, as wiring puts them together.


async def test_both_spend_from_the_same_quota() -> None:
    policies = {"hint": {"quotas": "2/hour", "match": ["POST /hints"], "user_from": ["header:x-api-key"]}}
    app = decision_app(load_config(env={}, policies=policies))
    async with served(app) as address, httpx.AsyncClient(base_url=f"http://{address}") as client:
        assert (await client.post("/v1/authz/hints", headers={"x-api-key": "alice"})).status_code == 200
        asked = {"user": "alice", "action": "hint"}
        assert (await client.post("/v1/check", json=asked)).json()["remaining"] == 0
        assert (await client.post("/v1/authz/hints", headers={"x-api-key": "alice"})).status_code == 429
