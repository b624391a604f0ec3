"""Keys: what they look like, and that no two pairs share one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit.dynamodb.schema import escape, limit_key, limit_pk, parse_limit_pk, record_of, table_definition, unescape
from ratelimit.names import Key

parts = st.text(st.sampled_from("a#%23LIMUSR5é/🦊"), min_size=1, max_size=12) | st.text(min_size=1)
keys = st.builds(Key, parts, parts)


def test_a_key_in_wire_form() -> None:
    key = Key.of("alice", "hint")
    assert limit_key(key) == {"PK": {"S": "USR#alice#LIM#hint"}, "SK": {"S": "STATE"}}


def test_separators_and_escapes_are_escaped() -> None:
    assert limit_pk(Key.of("a#b%c", "x/y#")) == "USR#a%23b%25c#LIM#x/y%23"


@given(parts)
def test_escaping_can_be_undone(part: str) -> None:
    assert "#" not in escape(part)
    assert unescape(escape(part)) == part


@given(keys, keys)
def test_no_two_pairs_share_a_key(one: Key, other: Key) -> None:
    assert (limit_pk(one) == limit_pk(other)) == (one == other)


@given(keys)
def test_a_partition_key_says_whose_it_is(key: Key) -> None:
    assert parse_limit_pk(limit_pk(key)) == key


def test_other_entities_are_not_taken_for_limits() -> None:
    assert parse_limit_pk("USR#alice#ULOG#20261121") is None
    assert parse_limit_pk("USR#alice") is None
    assert parse_limit_pk("PLAN#free") is None


def test_the_index_covers_no_attribute_of_a_counter() -> None:
    """An index on what a check changes would double the price of every check."""
    (index,) = table_definition("limits")["GlobalSecondaryIndexes"]
    assert [key["AttributeName"] for key in index["KeySchema"]] == ["GSI1PK", "GSI1SK"]


def test_an_item_read_back() -> None:
    item = {"PK": {"S": "x"}, "SK": {"S": "STATE"}, "tp": {"S": "lim"}, "ttl": {"N": "9"}, "d1": {"N": "-4"}}
    assert record_of({**item, "note": {"S": "by hand"}}) == {"d1": -4}
    with pytest.raises(ValueError, match=r"1\.5"):
        record_of({"d1": {"N": "1.5"}})
