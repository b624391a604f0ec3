"""A `Write` as data in wire form."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest

from ratelimit import Limiter, MemoryStore, Policy, StoreThrottled
from ratelimit.algorithms.fields import day_field
from ratelimit.dynamodb.expressions import encode
from ratelimit.names import Key
from ratelimit.store import Add, Drop, Expect, Op, Outcome, Put, Write
from ratelimit.store.delegating import DelegatingStore
from ratelimit.testing import FakeClock


def condition(*ops: Op) -> str | None:
    """The condition of a write, with names and values put back in."""
    update = encode(Write(ops, 9))
    text = update.get("ConditionExpression")
    names, values = update["ExpressionAttributeNames"], update["ExpressionAttributeValues"]
    for placeholder in sorted((*names, *values), key=len, reverse=True):
        value = names.get(placeholder) or values[placeholder]["N" if "N" in values[placeholder] else "S"]
        text = text and text.replace(placeholder, value)
    return text


def test_a_warm_check() -> None:
    write = Write((Add("d20758", 1, 5), Add("u261121", 1), Drop("d20756")), 1_795_000_000)
    assert encode(write) == {
        "UpdateExpression": "SET #f0 = :v0, #f1 = :v1 ADD #f2 :v2, #f3 :v4 REMOVE #f4",
        "ConditionExpression": "(attribute_not_exists(#f2) OR #f2 <= :v3)",
        "ExpressionAttributeNames": {
            "#f0": "tp",
            "#f1": "ttl",
            "#f2": "d20758",
            "#f3": "u261121",
            "#f4": "d20756",
        },
        "ExpressionAttributeValues": {
            ":v0": {"S": "lim"},
            ":v1": {"N": "1795000000"},
            ":v2": {"N": "1"},
            ":v3": {"N": "4"},
            ":v4": {"N": "1"},
        },
        "ReturnValues": "UPDATED_NEW",
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
    }


def test_a_write_without_conditions_has_no_condition() -> None:
    update = encode(Write((Add("d1", 1), Put("gd", -2), Expect("x", or_missing=True)), 9, whole=True))
    assert update == {
        "UpdateExpression": "SET #f0 = :v0, #f1 = :v1, #f3 = :v3 ADD #f2 :v2",
        "ExpressionAttributeNames": {"#f0": "tp", "#f1": "ttl", "#f2": "d1", "#f3": "gd"},
        "ExpressionAttributeValues": {":v0": {"S": "lim"}, ":v1": {"N": "9"}, ":v2": {"N": "1"}, ":v3": {"N": "-2"}},
        "ReturnValues": "ALL_NEW",
    }


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        (Add("f", 2, 5), "(attribute_not_exists(f) OR f <= 3)"),
        (Add("f", 5, 5), "(attribute_not_exists(f) OR f <= 0)"),
        (Add("f", 6, 5), "f <= -1"),
        (Add("f", -2, 5), "(attribute_not_exists(f) OR f <= 7)"),
        (Add("f", 2), None),
        (Expect("f", 3, 3), "f = 3"),
        (Expect("f", 1, 3), "f >= 1 AND f <= 3"),
        (Expect("f", low=1), "f >= 1"),
        (Expect("f", high=3), "f <= 3"),
        (Expect("f"), "attribute_exists(f)"),
        (Expect("f", 0, 0, or_missing=True), "(attribute_not_exists(f) OR f = 0)"),
        (Expect("f", high=3, or_missing=True), "(attribute_not_exists(f) OR f <= 3)"),
        (Expect("f", 1, 3, or_missing=True), "(attribute_not_exists(f) OR (f >= 1 AND f <= 3))"),
        (Expect("f", or_missing=True), None),
    ],
)
def test_conditions(op: Op, expected: str | None) -> None:
    assert condition(op) == expected


def test_every_placeholder_is_used_and_every_use_is_defined() -> None:
    """DynamoDB refuses both an unused and an undefined one."""
    ops = [op for n in range(14) for op in (Expect(f"e{n}", n, n + 1, or_missing=True), Add(f"a{n}", n, 99))]
    update = encode(Write((*ops, Expect("a3", low=1), Drop("e4"), Put("e5", 1)), 9))
    words = (update["UpdateExpression"] + " " + update["ConditionExpression"]).translate(str.maketrans("(),", "   "))
    used = {word for word in words.split() if word[0] in "#:"}
    assert used == {*update["ExpressionAttributeNames"], *update["ExpressionAttributeValues"]}
    names = list(update["ExpressionAttributeNames"].values())
    assert len(names) == len(set(names))


def test_a_field_is_changed_once() -> None:
    with pytest.raises(ValueError, match="changed twice"):
        encode(Write((Add("d1", 1), Drop("d1")), 9))


@pytest.mark.parametrize("name", ["PK", "SK", "tp", "ttl"])
def test_keys_and_bookkeeping_are_no_fields(name: str) -> None:
    with pytest.raises(ValueError, match="not a field"):
        encode(Write((Put(name, 1),), 9))


class Uncleaned(DelegatingStore):
    """Keeps the writes that it is asked for, and has no room for those that only clean up."""

    def __init__(self) -> None:
        super().__init__(MemoryStore())
        self.writes: list[Write] = []

    async def apply(self, key: Key, write: Write, *, now: int) -> Outcome:
        if all(type(op) is Drop for op in write.ops):
            raise StoreThrottled("no room")
        self.writes.append(write)
        return await super().apply(key, write, now=now)


async def test_a_check_drops_25_fields_at_most() -> None:
    """However much has gathered, its expression stays far below DynamoDB's 4 KB."""
    clock, store, alice = FakeClock(datetime(2026, 6, 1, tzinfo=UTC)), Uncleaned(), Key.of("alice", "hint")
    old = tuple(Put(day_field(date(2020, 1, 1) + timedelta(days=n)), 1) for n in range(60))
    await store.apply(alice, Write(old, 9_999_999_999), now=clock.now())
    store.writes.clear()
    async with Limiter(store, [Policy("hint", "1000/day")], clock=clock) as limiter:
        for _ in range(5):
            assert (await limiter.check("alice", "hint")).allowed
            clock.advance(1)
    assert [sum(type(op) is Drop for op in write.ops) for write in store.writes] == [0, 25, 25, 10, 0]
    assert max(len(encode(write)["UpdateExpression"]) for write in store.writes) < 300
