"""What a check costs on DynamoDB, as the engine itself counts it: calls, and consumed write units."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable
from datetime import date, timedelta
from typing import Any
from uuid import uuid4

import pytest

from ratelimit import InvalidUser, Limiter, Policy, Window
from ratelimit.algorithms.concurrency import Held
from ratelimit.algorithms.fields import (
    DAYS_KEPT,
    MONTHS_KEPT,
    bucket_field,
    bucket_limit_field,
    bucket_returned_field,
    day_field,
    month_field,
    utc_day,
    window_field,
)
from ratelimit.clock import SECOND
from ratelimit.dynamodb import DynamoDBStore
from ratelimit.dynamodb.expressions import number
from ratelimit.dynamodb.schema import TTL, TYPE, Attribute, Item, limit_key
from ratelimit.limiter.compiled_policy import CompiledPolicy
from ratelimit.names import MAX_ACTION_BYTES, MAX_USER_BYTES, Key
from ratelimit.policy import AlgorithmName
from ratelimit.testing import FakeClock
from tests.engines import Engine

MIXES = ["1000/day", "100/hour; 1000/day", "50/minute; 100/hour; 1000/day"]
ALGORITHMS: tuple[AlgorithmName, ...] = ("fixed_window", "sliding_window", "gcra")


@pytest.fixture
async def store(engine: Engine) -> AsyncIterator[DynamoDBStore]:
    name = f"units-{uuid4().hex[:8]}"
    async with DynamoDBStore(
        table=name, region="eu-west-1", endpoint=engine.endpoint, create=True, consumed=True
    ) as store:
        yield store


Bill = tuple[Counter[str], float]
"""Calls by their names, and write units."""


def bill(store: DynamoDBStore) -> Bill:
    return Counter(store.stats.calls), store.stats.write_units


def since(before: Bill, store: DynamoDBStore) -> Bill:
    calls, units = bill(store)
    return calls - before[0], units - before[1]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("quotas", MIXES)
async def test_a_warm_check_is_one_call_and_one_write_unit(
    store: DynamoDBStore, algorithm: AlgorithmName, quotas: str
) -> None:
    clock = FakeClock()
    limiter = Limiter(store, [Policy("hint", quotas, algorithm=algorithm)], clock=clock)
    for _ in range(40):  # as many days of totals as an item ever holds
        assert (await limiter.check("alice", "hint")).allowed
        clock.advance(86_400)
    await limiter.check("alice", "hint")
    before = bill(store)
    for _ in range(5):
        clock.advance(0.001)
        assert (await limiter.check("alice", "hint")).allowed
    assert since(before, store) == (Counter(UpdateItem=5), 5.0)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("quotas", MIXES)
async def test_a_cold_or_stale_check_is_at_most_two_calls(
    store: DynamoDBStore, algorithm: AlgorithmName, quotas: str
) -> None:
    """Two processes take turns on one key, at once and after pauses in which windows end: each knows too little."""
    clock = FakeClock()
    policy = Policy("hint", quotas, algorithm=algorithm)
    one, other = (Limiter(store, [policy], clock=clock) for _ in range(2))
    for pause in (0, 0.5, 61, 3_700, 90_000, 200_000):
        for limiter in (one, other, one, other, other, one):
            before = bill(store)
            assert (await limiter.check("alice", "hint")).allowed
            await limiter._checker.background.tasks.drain()  # a clean-up goes behind the answer
            calls, units = since(before, store)
            assert calls.keys() <= {"UpdateItem", "GetItem"}
            assert calls.total() <= 2
            assert units <= calls["UpdateItem"]
            clock.advance(pause)


async def test_several_keys_are_one_call_of_two_units_each(store: DynamoDBStore, engine: Engine) -> None:
    """A cold one is a read more; what is refused is that read alone, and what is known to be refused no call at all."""
    policies, clock = [Policy("user", "3/day"), Policy("org", "9/day")], FakeClock()
    one, other, third = (Limiter(store, policies, clock=clock) for _ in range(3))
    group = [("alice", "user"), ("acme", "org")]

    def billed(before: Bill) -> Bill:
        calls, units = since(before, store)
        return calls, 0.0 if engine.name == "dynamodb-local" else units  # which bills every transaction alike

    units = 0.0 if engine.name == "dynamodb-local" else 4.0
    before = bill(store)
    assert await one.check_all(group)
    assert billed(before) == (Counter(BatchGetItem=1, TransactWriteItems=1), units)
    before = bill(store)
    assert await one.check_all(group)
    assert billed(before) == (Counter(TransactWriteItems=1), units)
    before = bill(store)
    answer = await other.check_all(group)
    assert [decision.used for decision in answer] == [3, 3]
    for limiter, calls in ((other, Counter[str]()), (third, Counter(BatchGetItem=1)), (third, Counter())):
        before = bill(store)
        assert not await limiter.check_all(group)
        assert since(before, store) == (calls, 0.0)
    before = bill(store)
    several = [one.check_all([(f"user-{number}", "user"), ("many", "org")]) for number in range(20)]
    assert sum(map(bool, await asyncio.gather(*several))) == 9  # the first alone, and of those who wait the next eight
    assert billed(before) == (Counter(BatchGetItem=2, TransactWriteItems=2), units * 5.5)


async def cost(store: DynamoDBStore, step: Awaitable[Any]) -> tuple[bool, Counter[str], float]:
    """Whether a step is made, and what it takes."""
    before = bill(store)
    made = bool(await step)
    return made, *since(before, store)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_slots_and_reservations_are_a_call_and_a_unit_for_each_step(
    store: DynamoDBStore, algorithm: AlgorithmName
) -> None:
    """As the table in docs/policies.md has it, with all the totals that an item ever holds, and 20 that are held."""
    clock = FakeClock()
    policy = Policy("tokens", "50/minute; 100/hour; 1000/day; 20 concurrent", algorithm=algorithm)
    days = Policy("days", "1000/day")
    limiter, dead = (Limiter(store, [policy, days], clock=clock) for _ in range(2))
    for one in (limiter, dead):
        one._holds._looks = asyncio.get_running_loop()  # nothing is renewed but by hand
    for _ in range(40):
        await limiter.reserve("alice", "tokens", 3).take()
        await limiter.drain()  # what has expired is swept meanwhile
        clock.advance(86_400)
    others = []
    for _ in range(19):
        others.append(limiter.reserve("alice", "tokens", 2))
        assert await others[-1].take()
        clock.advance(1.3)
    reservation = limiter.reserve("alice", "tokens", 2)
    assert await cost(store, reservation.take()) == (True, Counter(UpdateItem=1), 1.0)
    refused = await cost(store, limiter.reserve("alice", "tokens", 2).take())
    assert refused[:2] == (False, Counter(UpdateItem=1)), "an answer does not say what a refusal has cost"
    assert await cost(store, limiter.reserve("alice", "tokens", 2).take()) == (False, Counter(), 0.0), "at once"
    clock.advance(8)
    assert await cost(store, reservation.renew()) == (True, Counter(UpdateItem=1), 1.0)
    reservation.settle(1)
    assert (await cost(store, reservation.release()))[1:] == (Counter(UpdateItem=1), 1.0)
    for other in others:
        await other.release()
    assert await dead.reserve("alice", "days", 1000).take()
    clock.advance(40)
    taken = await cost(store, limiter.reserve("alice", "days", 1000).take())
    assert taken == (True, Counter(UpdateItem=3), 2.0), "after a process has died with all of it"


# An item has to stay below 1,024 bytes, or every check costs two write units. Sizes by DynamoDB's rule.


WRITE_UNIT = 1024
NOW = 1_795_000_000_000_000


def size(item: Item) -> int:
    return sum(len(name.encode()) + _size_of(value) for name, value in item.items())


def _size_of(value: Attribute) -> int:
    if "S" in value:
        return len(str(value["S"]).encode())
    return 1 + (len(str(value["N"]).rstrip("0")) + 1) // 2


def full_item(key: Key, value: int) -> Item:
    """All that may be in an item at once: every total, three windows with their predecessors, and a bucket."""
    today = utc_day(NOW)
    fields = {day_field(today - timedelta(days=n)): value for n in range(DAYS_KEPT)}
    for n in range(MONTHS_KEPT):
        year, month = divmod(today.year * 12 + today.month - 1 - n, 12)
        fields[month_field(date(year, month + 1, 1))] = value
    for window in (Window(1, "minute"), Window(1, "hour"), Window(1, "day")):
        for index in (window.span(NOW).index, window.span(NOW).index - 1):
            fields[window_field(window, index)] = value
    fields[bucket_field(Window(1, "day"))] = NOW * 1000 + 123_456_789
    fields[bucket_limit_field(Window(1, "day"))] = value
    fields[bucket_returned_field(Window(1, "day"))] = NOW * 1000
    numbers = {name: number(amount) for name, amount in fields.items()}
    return {**limit_key(key), TYPE: {"S": "lim"}, TTL: number(1_795_123_457), **numbers}


@pytest.mark.parametrize(
    ("user_bytes", "action_bytes", "value"),
    [
        (36, 16, 999_999_999_999),
        (128, 32, 999_999_999),
        (MAX_USER_BYTES, MAX_ACTION_BYTES, 999_999),
    ],
)
def test_a_full_item_is_one_write_unit(user_bytes: int, action_bytes: int, value: int) -> None:
    item = full_item(Key.of("u" * user_bytes, "a" * action_bytes), value)
    assert size(item) < WRITE_UNIT, f"{size(item)} bytes"


def test_escaping_does_not_make_it_longer_than_that() -> None:
    with pytest.raises(InvalidUser):
        Key.of("#" * (MAX_USER_BYTES // 3 + 1), "hint")
    widest = Key.of("#" * (MAX_USER_BYTES // 3), "%" * (MAX_ACTION_BYTES // 3))
    assert size(full_item(widest, 999_999)) < WRITE_UNIT


def test_the_rule_itself() -> None:
    assert size({"a": {"N": "0"}, "bc": {"N": "12300"}, "ü": {"S": "xyz"}}) == (1 + 1) + (2 + 1 + 2) + (2 + 3)


@pytest.mark.parametrize("algorithm", ["fixed_window", "gcra"])
def test_what_is_held_takes_few_fields_however_much_it_is(algorithm: AlgorithmName) -> None:
    """Some begin every other second, before and after an hour ends, and are renewed for ten minutes."""
    compiled = CompiledPolicy(Policy("tokens", "50/minute; 100/hour; 20 concurrent", algorithm=algorithm))
    held: deque[tuple[int, Held]] = deque()
    longest = 0
    for second in range(2500, 3900, 2):
        now = NOW + second * SECOND
        held.append((now, compiled.held(now, 1000)))
        while held[0][0] < now - 600 * SECOND:
            held.popleft()
        renewed = compiled.policy.hold // 3
        held = deque(
            (taken, compiled.renewed(now, one) if taken < now and (now - taken) // SECOND % renewed == 0 else one)
            for taken, one in held
        )
        if second % 20 == 0:
            fields = {part.field for _, one in held for part in one.fields}
            longest = max(longest, sum(len(field) + 4 for field in fields))
    assert longest < {"fixed_window": 300, "gcra": 750}[algorithm]
