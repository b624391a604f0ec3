"""Samples of every item of the table, in DynamoDB's wire form: made by the code that makes the real ones.

A test writes the same things to an engine, and finds there what `samples` says.
"""

from __future__ import annotations

import asyncio
from typing import Final

from docs.hooks.text import fenced, in_lines
from ratelimit import Identity, Limiter, MemoryStore, Plan, Policy, Quota, UsageEvent, User
from ratelimit.clock import SECOND, Clock
from ratelimit.dynamodb.directory import entry_key, entry_values, identity_item
from ratelimit.dynamodb.events import event_item, id_item
from ratelimit.dynamodb.expressions import encode, number
from ratelimit.dynamodb.schema import CREATED, LIMIT_TYPE, TTL, TYPE, Item, limit_key
from ratelimit.event_id import id_from
from ratelimit.names import Key
from ratelimit.store import Store
from ratelimit.store.base import Outcome, Write
from ratelimit.store.directory import Entry, name_of, next_version
from ratelimit.testing import FakeClock

NAMES: Final = ("windows", "bucket", "event", "note", "plan", "user", "email", "key")
POLICIES: Final = [
    Policy("run", quotas=["20/minute", "1000/month"]),
    Policy("search", quotas=Quota(10, "second", burst=20), algorithm="gcra"),
]
PLAN: Final = Plan("pro", {"hint": "50/day", "run": "unlimited"})
EMAIL: Final = Identity.email("alice@example.com")
KEY: Final = Identity.api_key("an-api-key-of-alice", pepper=b"a secret of the application")
USER: Final = User("alice", plan="pro", quotas={"hint": "100/day"}, identities=[EMAIL, KEY])


def sample_block(name: str) -> str:
    """Markdown: one of the samples, of noon on 5 January 2026."""
    return fenced("json", in_lines(asyncio.run(samples(FakeClock()))[name]))


def request_block() -> str:
    """Markdown: the `UpdateItem` of a warm check, all but the table and the key."""
    spy = _Spy()
    asyncio.run(spend(spy, FakeClock()))
    return fenced("json", in_lines(encode(spy.writes[Key("alice", "run")])))


async def samples(clock: Clock) -> dict[str, Item]:
    """An item of each kind, by its name on the page."""
    spy = _Spy()
    await spend(spy, clock)
    with_time, named = events(clock)
    return {
        "windows": await spy.item(Key("alice", "run")),
        "bucket": await spy.item(Key("alice", "search")),
        "event": event_item(with_time),
        "note": id_item(named),
        "plan": _entry(PLAN, clock.now()),
        "user": _entry(USER, clock.now()),
        "email": identity_item(EMAIL, "alice", now=clock.now()),
        "key": identity_item(KEY, "alice", now=clock.now()),
    }


async def spend(store: Store, clock: Clock) -> None:
    """What alice has done before the samples are taken."""
    async with Limiter(store, POLICIES, clock=clock, deadline=30) as limiter:
        for cost in (1, 1, 5):
            assert (await limiter.check("alice", "run", cost=cost)).allowed
        assert (await limiter.check("alice", "search")).allowed


def events(clock: Clock) -> tuple[UsageEvent, UsageEvent]:
    """One whose id was made for it, and one with an id of the application's own."""
    now = clock.now()
    # As `EventIds` makes them, but always the same.
    uuid = id_from(now // 1000, b"sample")
    with_time = UsageEvent.of(
        "alice", "hint", now=now, id=uuid, status=200, duration=1.4, resource="problem-100",
        request_id="6f1c0d", metadata={"difficulty": 3},
    )  # fmt: skip
    return with_time, UsageEvent.of("alice", "hint", now=now, id="order-17")


def _entry(entry: Entry, now: int) -> Item:
    """A user or a plan that was not there before."""
    values = entry_values(entry, now=now, version=next_version(None, now))
    return {**entry_key(type(entry), name_of(entry)), **values, CREATED: number(now // SECOND)}


class _Spy(MemoryStore):
    """Remembers the last write of each record."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: dict[Key, Write] = {}

    async def apply(self, key: Key, write: Write, *, now: int) -> Outcome:
        self.writes[key] = write
        return await super().apply(key, write, now=now)

    async def item(self, key: Key) -> Item:
        record = await self.read(key)
        kind = {TYPE: {"S": LIMIT_TYPE}, TTL: number(self.writes[key].expires_at)}
        return {**limit_key(key), **kind, **{name: number(value) for name, value in record.items()}}
