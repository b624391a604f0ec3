"""What was used, over HTTP, on every store; and the end of all traces."""

from __future__ import annotations

from datetime import timedelta

import pytest

from ratelimit.algorithms.fields import utc_day
from ratelimit.names import Key
from ratelimit.store import MemoryStore
from tests.http.api.clients import NOON, Service, service_on
from tests.http.api.clients import service as service

TODAY = utc_day(NOON)
YESTERDAY = TODAY - timedelta(days=1)


async def use(service: Service, user: str) -> None:
    """Seven checks of `hint`, of which five pass, and one of `run`."""
    for _ in range(7):
        await service.client.post("/v1/check", json={"user": user, "action": "hint", "metadata": {"n": 2**70}})
    await service.client.post("/v1/check", json={"user": user, "action": "run", "cost": 3, "resource": "problem-1"})
    await service.usage.flush()


async def test_summary_and_totals(service: Service, user: str) -> None:
    await use(service, user)
    path = f"/v1/users/{user}/usage"
    assert (await service.client.get(f"{path}?days=5")).json() == {
        "user": user,
        "since": str(TODAY - timedelta(days=4)),
        "until": str(TODAY),
        "actions": {"hint": {"total": 5, "daily_avg": 1.0}, "run": {"total": 3, "daily_avg": 0.6}},
    }
    day = str(TODAY)
    assert (await service.client.get(f"{path}/totals")).json() == {
        "user": user,
        "totals": {"hint": {day: 5}, "run": {day: 3}},
    }
    one = await service.client.get(f"{path}/totals?action=run&since={YESTERDAY}&until={day}")
    assert one.json()["totals"] == {"run": {day: 3}}
    month = str(TODAY.replace(day=1))
    monthly = await service.client.get(f"{path}/totals?per=month")
    assert monthly.json()["totals"] == {"hint": {month: 5}, "run": {month: 3}}


async def test_events_newest_first_page_by_page(service: Service, user: str) -> None:
    await use(service, user)
    path = f"/v1/users/{user}/usage/events"
    page = (await service.client.get(f"{path}?limit=3")).json()
    rest = (await service.client.get(f"{path}?limit=3&cursor={page['cursor']}")).json()
    assert (len(page["events"]), len(rest["events"])) == (3, 3)
    assert len({one["id"] for one in page["events"] + rest["events"]}) == 6
    run = (await service.client.get(f"{path}?action=run")).json()["events"]
    assert [(one["cost"], one["resource"], one["allowed"]) for one in run] == [(3, "problem-1", True)]
    denied = (await service.client.get(f"{path}?allowed=false")).json()["events"]
    assert [(one["action"], one["metadata"]) for one in denied] == [("hint", {"n": 2**70})] * 2
    for query, count in (
        (f"since={TODAY}", 8),
        (f"until={TODAY}", 8),
        (f"until={YESTERDAY}", 0),
        (f"since={TODAY}T23:00:00Z", 0),
        (f"until={TODAY}T23:00:00+01:00", 8),
    ):
        assert len((await service.client.get(f"{path}?{query}")).json()["events"]) == count, query


async def test_erase_leaves_no_trace(service: Service, user: str) -> None:
    await use(service, user)
    client, path, email = service.client, f"/v1/users/{user}", f"email:{user}@example.com"
    await client.put(path, json={"quotas": {"hint": "50/day"}, "identities": [email]})
    await client.post("/v1/check", json={"user": user, "action": "once", "quotas": "5/day"})
    await service.limiter.check(user, "unlogged", quotas="5/day")
    assert (await client.post("/v1/peek", json={"user": user, "action": "hint"})).json()["limit"] == 50

    answer = await client.post(f"{path}/erase", json={"actions": ["unlogged"]})
    # Events; counters of hint, run, once and unlogged; the entry, and its identity.
    found = {"events": 9, "counters": 4, "entries": 1, "identities": 1}
    assert answer.json() == {"user": user, "erased": 9 + 4 + 2, "found": found, "left": []}
    assert (await client.post(f"{path}/erase", json={})).json()["erased"] == 0
    assert (await client.get(path)).status_code == 404
    assert (await client.get("/v1/users", params={"identity": email})).json()["users"] == []
    assert (await client.get(f"{path}/usage/events")).json()["events"] == []
    assert await service.store.read(Key(user, "hint")) == {}
    # Not remembered either.
    assert (await client.post("/v1/peek", json={"user": user, "action": "hint"})).json()["limit"] == 5


async def test_a_repeated_erase_with_its_key_is_answered_the_same(service: Service, user: str) -> None:
    await use(service, user)
    key = {"idempotency-key": user}
    first = await service.client.post(f"/v1/users/{user}/erase", json={}, headers=key)
    again = await service.client.post(f"/v1/users/{user}/erase", json={}, headers=key)
    assert (first.json()["erased"], again.content) == (10, first.content)
    other = await service.client.post(f"/v1/users/{user}-2/erase", json={}, headers=key)
    assert "idempotency-replayed" not in other.headers


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("?days=0", "days: Expected 'int' >= 1"),
        ("?days=36", "days: Expected 'int' <= 35"),
        ("?days=x", "days: Expected 'int'"),
        ("/totals?since=2026-02-30", "since: '2026-02-30' is no day; write 2026-01-05"),
        ("/totals?since=today", "since: 'today' is no day"),
        ("/totals?since=2020-01-01", "totals are kept for 35 days"),
        ("/totals?since=2020-01-01&per=month", "totals are kept for 13 months"),
        ("/totals?per=week", "per: "),
        ("/totals?action=", "action: Expected 'str' of length >= 1"),
        ("/events?since=noon", "since: 'noon' is no date; write 2026-01-05, or 2026-01-05T12:00:00Z"),
        ("/events?since=0001-01-01T00:00:00%2B23:59", "is no date"),
        ("/events?until=9999-12-31", "is no date"),
        ("/events?until=20261120", "is no date"),
        ("/events?since=2020-01-01", "events are kept for 90 days"),
        ("/events?allowed=yes", "allowed: Invalid enum value 'yes'"),
        ("/events?limit=1001", "limit: Expected 'int' <= 1000"),
        ("/events?cursor=x", "the cursor is damaged"),
    ],
)
async def test_bad_questions(query: str, told: str) -> None:
    async with service_on(MemoryStore()) as service:
        answer = await service.client.get(f"/v1/users/alice/usage{query}")
        assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
        assert told in answer.json()["detail"]


async def test_the_timeline_is_of_all_users_and_filtered() -> None:
    async with service_on(MemoryStore()) as service:
        service.usage.timelines.add("hint")
        for user in ("alice", "bob"):
            await use(service, user)
        path = "/v1/actions/hint/timeline"
        page = (await service.client.get(f"{path}?limit=9")).json()
        rest = (await service.client.get(f"{path}?limit=9&cursor={page['cursor']}")).json()
        assert [len(page["events"]), len(rest["events"]), rest["cursor"]] == [9, 5, None]
        assert {one["user"] for one in page["events"] + rest["events"]} == {"alice", "bob"}
        for query, count in (
            ("allowed=false", 4),
            ("allowed=true&resource=x", 0),
            ("status=429", 0),
            (f"until={YESTERDAY}", 0),
            (f"since={TODAY}", 14),
        ):
            assert len((await service.client.get(f"{path}?{query}")).json()["events"]) == count, query
        assert (await service.client.get("/v1/actions/run/timeline")).json() == {"events": [], "cursor": None}
        for bad in ("status=9", "limit=0", "user=alice", f"cursor={page['cursor']}&allowed=true"):
            assert (await service.client.get(f"{path}?{bad}")).status_code == 400, bad
        found = await service.client.get("/v1/users/alice/usage/events?resource=problem-1&status=200")
        assert found.json()["events"] == []
