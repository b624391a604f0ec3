"""With hashed users everything works as without, and nobody's name is in the store."""

from __future__ import annotations

from typing import Any

import pytest

from ratelimit import Directory, Identity, Limiter, MemoryStore, Plan, Policy, UsageLog, User
from ratelimit.names import is_hash
from ratelimit.store import TableStore
from ratelimit.store.hashed import HashedUserStore, UserHash
from ratelimit.testing import FakeClock
from tests.engines import Engine
from tests.store.conftest import dynamodb

SECRET = "a secret of the application"
ALICE = "alice@example.com"


async def use(store: TableStore, user: str) -> dict[str, Any]:
    """A little of everything, and what can be read back of it."""
    clock = FakeClock()
    directory = Directory(store.directory, clock=clock)
    await store.directory.replace(None, Plan("gold", {"hint": "2/day"}), now=1)
    await store.directory.replace(None, User(user, plan="gold", identities=[Identity.api_key("k" * 20)]), now=1)
    limiter = Limiter(store, [Policy("hint", "5/day")], clock=clock, directory=directory)
    async with limiter, UsageLog(store, actions=["hint"], clock=clock) as usage:
        allowed = [(await limiter.check(user, "hint")).allowed for _ in range(3)]
        own = await usage.record(user, "hint", id="order-1")
        await usage.record(user, "hint", id="order-1")
        await usage.flush()
        events = (await usage.events(user)).events
        summary = await usage.summary(user, days=1)
        entry = await store.directory.read(User, user)
        erased = await usage.erase(user)
        left = (await usage.events(user)).events
    return {
        "allowed": allowed,
        "events": [(event.id, event.user) for event in events],
        "own": own,
        "total": summary["hint"]["total"],
        "entry": entry and (entry.id, entry.plan),
        "erased": erased,
        "left": left,
    }


async def test_everything_works_as_without() -> None:
    hidden = await use(HashedUserStore(MemoryStore(), SECRET), ALICE)
    assert hidden == await use(MemoryStore(), ALICE)
    assert hidden["allowed"] == [True, True, False]
    assert hidden["events"] == [("order-1", ALICE)]


async def test_no_name_is_in_the_table(engine: Engine) -> None:
    user = "somebody-who-is-not-to-be-known"
    async with dynamodb(engine) as table:
        store = HashedUserStore(table, SECRET)
        limiter = Limiter(store, [Policy("hint", "5/day")])
        assert (await limiter.check(user, "hint")).allowed
        async with UsageLog(store, actions=["hint"]) as usage:
            await usage.record(user, "hint", id="order-2")
            await usage.record(user, "hint")
        await store.directory.replace(None, User(user), now=1)
        client = (await table._client()).api
        found = str([page async for page in client.get_paginator("scan").paginate(TableName=table.settings.table)])
    assert user not in found
    assert found.count(UserHash(SECRET).of(user)) >= 4, "a counter, two events and the user"


def test_a_hash_is_of_one_user_and_one_secret() -> None:
    one = UserHash(SECRET).of(ALICE)
    assert is_hash(one)
    assert one == UserHash(SECRET).of(ALICE)
    assert len({one, UserHash(SECRET).of("bob"), UserHash("another secret").of(ALICE)}) == 3
    assert UserHash(SECRET).of(one) == one, "what a list shows can be asked for"


@pytest.mark.parametrize("user", ["h:", "h:alice", "h:" + "A" * 26, "h:" + "1" * 26, "x" + "a" * 27])
def test_what_only_looks_like_one_is_hashed(user: str) -> None:
    assert not is_hash(user)
    assert UserHash(SECRET).of(user) != user
