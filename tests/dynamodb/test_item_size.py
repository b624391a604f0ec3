"""An item has to stay below 1,024 bytes, or every check costs two write units. Sizes by DynamoDB's rule.

"Item sizes and formats" in the DynamoDB developer guide: names and strings in UTF-8, a number takes one byte for two
significant digits and one more.
"""

from __future__ import annotations

from collections import deque
from datetime import date, timedelta

import pytest

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
from ratelimit.dynamodb.expressions import number
from ratelimit.dynamodb.schema import TTL, TYPE, Attribute, Item, limit_key
from ratelimit.errors import InvalidUser
from ratelimit.limiter.compiled_policy import CompiledPolicy
from ratelimit.names import MAX_ACTION_BYTES, MAX_USER_BYTES, Key
from ratelimit.policy import AlgorithmName, Policy
from ratelimit.quota import Window

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
