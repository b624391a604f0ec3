"""What every store promises. A new store joins by one line in `conftest.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ratelimit.errors import StoreThrottled
from ratelimit.names import Key
from ratelimit.store import Add, Drop, Expect, MemoryStore, Op, Outcome, Put, Store, Write
from tests.engines import Engine
from tests.store.conftest import dynamodb, new_key

NOW = 1_790_000_000_000_000
LATER = 1_999_999_999


def write(*ops: Op, whole: bool = False) -> Write:
    return Write(ops, LATER, whole)


async def start(store: Store, key: Key, **fields: int) -> None:
    """The record, made what the test needs."""
    await store.apply(key, write(*(Put(name, value) for name, value in fields.items())), now=NOW)


async def outcome(store: Store, key: Key, *ops: Op, whole: bool = False) -> Outcome:
    return await store.apply(key, write(*ops, whole=whole), now=NOW)


def test_is_a_store(store: Store) -> None:
    assert isinstance(store, Store)


async def test_an_unknown_record_is_empty(store: Store, key: Key) -> None:
    assert await store.read(key) == {}


async def test_add_begins_at_zero_and_sums_up(store: Store, key: Key) -> None:
    assert await outcome(store, key, Add("d1", 2)) == Outcome(True, {"d1": 2})
    assert await outcome(store, key, Add("d1", -5)) == Outcome(True, {"d1": -3})
    assert await store.read(key) == {"d1": -3}


async def test_add_stops_at_most(store: Store, key: Key) -> None:
    one = write(Add("d1", 1, 3))
    applied = [(await store.apply(key, one, now=NOW)).applied for _ in range(5)]
    assert applied == [True, True, True, False, False]
    assert await store.read(key) == {"d1": 3}


async def test_an_amount_above_at_most_does_not_fit_an_empty_record_either(store: Store, key: Key) -> None:
    assert await outcome(store, key, Add("d1", 4, 3)) == Outcome(False, {})
    assert await store.read(key) == {}
    await start(store, key, d1=-1)
    assert await outcome(store, key, Add("d1", 4, 3)) == Outcome(True, {"d1": 3})


async def test_put_and_drop(store: Store, key: Key) -> None:
    await start(store, key, gd=7, old=1)
    assert await outcome(store, key, Put("gd", 9), Drop("old"), Drop("never")) == Outcome(True, {"gd": 9})
    assert await store.read(key) == {"gd": 9}


@pytest.mark.parametrize(
    ("expect", "holds"),
    [
        (Expect("f", 5, 5), True),
        (Expect("f", 4, 6), True),
        (Expect("f", 6, 9), False),
        (Expect("f", 1, 4), False),
        (Expect("f", low=5), True),
        (Expect("f", low=6), False),
        (Expect("f", high=5), True),
        (Expect("f", high=4), False),
        (Expect("f"), True),
        (Expect("f", 9, 1), False),
        (Expect("f", 9, 1, or_missing=True), False),
        (Expect("f", or_missing=True), True),
        (Expect("f", 5, 5, or_missing=True), True),
        (Expect("f", 6, 6, or_missing=True), False),
        (Expect("no"), False),
        (Expect("no", 0, 0), False),
        (Expect("no", low=0), False),
        (Expect("no", high=0), False),
        (Expect("no", 0, 0, or_missing=True), True),
        (Expect("no", high=0, or_missing=True), True),
        (Expect("no", 9, 1, or_missing=True), True),
        (Expect("no", or_missing=True), True),
    ],
)
async def test_expect(store: Store, key: Key, expect: Expect, holds: bool) -> None:
    await start(store, key, f=5)
    done = await outcome(store, key, expect, Add("d1", 1))
    assert done == (Outcome(True, {"d1": 1}) if holds else Outcome(False, {"f": 5}))


async def test_an_expected_field_may_be_changed_too(store: Store, key: Key) -> None:
    await start(store, key, gd=100)
    assert await outcome(store, key, Expect("gd", 50, 100), Add("gd", 10)) == Outcome(True, {"gd": 110})
    assert await outcome(store, key, Expect("gd", 50, 100), Add("gd", 10)) == Outcome(False, {"gd": 110})
    assert await outcome(store, key, Expect("gd", 110, 110), Drop("gd")) == Outcome(True, {})
    assert await outcome(store, key, Expect("gd", high=99, or_missing=True), Put("gd", 1)) == Outcome(True, {"gd": 1})


async def test_all_or_none(store: Store, key: Key) -> None:
    """The first window has room, the second has none: neither is spent from, and nothing else happens."""
    await start(store, key, s9=1, d1=3, old=4)
    refused = await outcome(store, key, Add("s9", 1, 5), Add("d1", 1, 3), Drop("old"), Put("gd", 1), Add("u260101", 1))
    assert refused == Outcome(False, {"s9": 1, "d1": 3, "old": 4})
    assert await store.read(key) == {"s9": 1, "d1": 3, "old": 4}


async def test_an_applied_write_tells_what_it_touched(store: Store, key: Key) -> None:
    await start(store, key, other=4)
    assert await outcome(store, key, Add("d1", 1), Put("gd", 5)) == Outcome(True, {"d1": 1, "gd": 5})


async def test_a_whole_write_tells_everything(store: Store, key: Key) -> None:
    await start(store, key, other=4, old=1)
    assert await outcome(store, key, Add("d1", 1), Drop("old"), whole=True) == Outcome(True, {"d1": 1, "other": 4})


async def test_a_write_without_operations_is_applied(store: Store, key: Key) -> None:
    assert await outcome(store, key) == Outcome(True, {})
    assert await store.read(key) == {}


async def test_numbers_are_exact(store: Store, key: Key) -> None:
    """Nanoseconds of this century need 61 bits, which a float does not have."""
    tat = 1_790_000_000_123_456_789
    await start(store, key, gd=tat)
    assert await outcome(store, key, Expect("gd", tat, tat), Add("gd", 10**18)) == Outcome(True, {"gd": tat + 10**18})


async def test_delete_forgets_everything(store: Store, key: Key) -> None:
    await start(store, key, d1=3, u260101=3)
    await store.delete(key)
    await store.delete(key)
    assert await store.read(key) == {}


async def test_keys_never_collide(store: Store) -> None:
    """Separators, escapes, wildcards, and letters that look alike; what is one name in Unicode is one user."""
    some = uuid4().hex
    parts = [
        "a",
        "a#LIM#b",
        "a%23LIM%23b",
        "a%2523",
        "a%23",
        "a#",
        "#",
        "%",
        "a/b",
        "a b",
        "é",
        "ﬁ",
        "🦊",
        "A",
    ]
    keys = [Key.of(f"{some}{user}", action) for user in parts for action in ("b", "b#LIM#c", "%23", "/", "ß")]
    for number, key in enumerate(keys):
        await start(store, key, f=number)
    assert [await store.read(key) for key in keys] == [{"f": number} for number in range(len(keys))]


async def test_racers_admit_exactly_the_limit(store: Store, key: Key) -> None:
    one = write(Add("d1", 1, 20), Add("u260101", 1))
    outcomes = await asyncio.gather(*(store.apply(key, one, now=NOW) for _ in range(50)))
    assert sum(outcome.applied for outcome in outcomes) == 20
    assert await store.read(key) == {"d1": 20, "u260101": 20}


async def test_writes_of_several_keys_apply_all_or_none(store: Store, key: Key) -> None:
    other, new = new_key("other"), new_key("new")
    await start(store, key, d1=2, old=1)
    await start(store, other, d1=3)
    refused = await store.apply_all(
        [(key, write(Add("d1", 1, 3), Drop("old"))), (other, write(Add("d1", 1, 3))), (new, write(Add("d1", 1)))],
        now=NOW,
    )
    assert refused == [Outcome(True, {}), Outcome(False, {"d1": 3}), Outcome(True, {})]
    assert [await store.read(one) for one in (key, other, new)] == [{"d1": 2, "old": 1}, {"d1": 3}, {}]
    applied = await store.apply_all(
        [(key, write(Add("d1", 1, 3), Drop("old"))), (other, write(Add("d1", 1, 4))), (new, write(Put("gd", 7)))],
        now=NOW,
    )
    assert applied == [Outcome(True, {})] * 3
    assert [await store.read(one) for one in (key, other, new)] == [{"d1": 3}, {"d1": 4}, {"gd": 7}]


async def test_each_refusal_of_several_is_told(store: Store, key: Key) -> None:
    other = new_key("other")
    await start(store, key, d1=3)
    refused = await store.apply_all(
        [(key, write(Add("d1", 1, 3))), (other, write(Expect("gd", 1), Add("gd", 1)))], now=NOW
    )
    assert refused == [Outcome(False, {"d1": 3}), Outcome(False, {})]


async def test_racers_on_several_keys_admit_exactly_the_limit(store: Store, key: Key) -> None:
    """Each user has room, and the shared key for 20 of them."""
    one = write(Add("d1", 1, 20))
    users = [new_key() for _ in range(50)]

    async def race(user: Key) -> bool:
        while True:
            with suppress(StoreThrottled):  # too many others were at work on the shared one
                return all(done.applied for done in await store.apply_all([(user, one), (key, one)], now=NOW))

    admitted = sum(await asyncio.gather(*map(race, users)))
    assert admitted == 20
    assert await store.read(key) == {"d1": 20}
    assert sum([len(await store.read(user)) for user in users]) == 20


async def test_opening_and_closing_may_be_repeated(store: Store, key: Key) -> None:
    await start(store, key, f=1)
    await store.open()
    await store.close()
    await store.close()
    await store.open()
    assert await store.read(key) == {"f": 1}


# Memory and DynamoDB run the same histories with the same outcomes, write for write.


FIELDS = ["d20758", "m10_2893001", "gd", "u261121", "u2611"]
small = st.integers(-3, 6)
bound = st.none() | small


@st.composite
def changes(draw: st.DrawFn, field: str) -> Op | None:
    match draw(st.sampled_from(["add", "add", "put", "drop", "none"])):
        case "add":
            return Add(field, draw(small), draw(bound))
        case "put":
            return Put(field, draw(small))
        case "drop":
            return Drop(field)
    return None


@st.composite
def expectations(draw: st.DrawFn, field: str) -> Op | None:
    if draw(st.integers(0, 3)):
        return None
    return Expect(field, draw(bound), draw(bound), draw(st.booleans()))


@st.composite
def writes(draw: st.DrawFn) -> Write:
    fields = draw(st.lists(st.sampled_from(FIELDS), unique=True, max_size=4))
    ops = [op for field in fields for op in (draw(expectations(field)), draw(changes(field))) if op is not None]
    return Write(
        tuple(draw(st.permutations(ops))), draw(st.integers(1_900_000_000, 2_000_000_000)), draw(st.booleans())
    )


async def replay(stores: tuple[Any, Any], keys: Sequence[Key], history: list[list[Write]]) -> None:
    """A step of several writes is one of all keys at once."""
    for step in history:
        memory, table = [await apply(store, list(zip(keys, step, strict=False))) for store in stores]
        assert table == memory, step
    memory, table = [await store.read_all(keys) for store in stores]
    assert table == memory


async def apply(store: Any, step: list[tuple[Key, Write]]) -> object:
    return await (store.apply(*step[0], now=0) if len(step) == 1 else store.apply_all(step, now=0))


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "slow"])
async def test_same_outcomes(engine: Engine, fast: bool) -> None:
    """One event loop and one connection for all examples, so hypothesis only makes the histories."""
    histories: list[list[list[Write]]] = []
    steps = st.lists(writes(), min_size=1, max_size=1) | st.lists(writes(), min_size=2, max_size=3)

    @settings(max_examples=150, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(steps, min_size=1, max_size=8))
    def collect(history: list[list[Write]]) -> None:
        histories.append(history)

    collect()
    async with dynamodb(engine, fast=fast) as table:
        for history in histories:
            await replay((MemoryStore(), table), [new_key() for _ in range(3)], history)
