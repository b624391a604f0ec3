"""Users and plans as rows: the layout, and that nothing is lost on the way there and back."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit.dynamodb.directory import entry_key, entry_of, entry_values, identity_item
from ratelimit.dynamodb.schema import escape
from ratelimit.names import MAX_ACTION_BYTES, MAX_USER_BYTES
from ratelimit.quota import UNITS, UNLIMITED, Quota, Quotas, Window
from ratelimit.store.directory import Entry, Identity, Plan, UnreadableEntry, User, name_of

NOW = 1_790_000_000_123_456


def names(most: int) -> st.SearchStrategy[str]:
    text = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]) | st.sampled_from("#%:/"), min_size=1)
    # As they are kept: a few characters take more bytes in NFC, and `#` and `%` take three.
    return text.filter(lambda name: len(escape(unicodedata.normalize("NFC", name)).encode()) <= most)


windows = st.builds(Window, st.sampled_from([1, 2, 5]), st.sampled_from(UNITS))
one_quota = st.builds(Quota, st.integers(0, 10**12), windows, st.none() | st.integers(1, 10**12))
several: st.SearchStrategy[Quotas] = st.lists(
    one_quota, min_size=1, max_size=3, unique_by=lambda quota: quota.window
).map(tuple)
quotas = st.dictionaries(names(MAX_ACTION_BYTES), several | st.just(UNLIMITED), max_size=4)
identities = st.emails().map(Identity.email) | st.text("abc", min_size=16).map(Identity.api_key)
users = st.builds(
    User,
    names(MAX_USER_BYTES),
    plan=st.none() | names(MAX_ACTION_BYTES),
    quotas=quotas,
    role=st.sampled_from(["user", "admin"]),
    active=st.booleans(),
    identities=st.lists(identities, max_size=3),
)
plans = st.builds(Plan, names(MAX_ACTION_BYTES), quotas)


def row(entry: Entry) -> dict[str, Any]:
    return {**entry_key(type(entry), name_of(entry)), **entry_values(entry, now=NOW, version=7)}


@given(users | plans)
def test_there_and_back(entry: Entry) -> None:
    back = entry_of(type(entry), row(entry))
    assert (back, back.version) == (entry, 7)
    assert [several is UNLIMITED for several in back.quotas.values()] == [
        several is UNLIMITED for several in entry.quotas.values()
    ]


@given(users | plans, users | plans)
def test_no_two_share_a_key(one: Entry, other: Entry) -> None:
    same = (type(one), name_of(one)) == (type(other), name_of(other))
    assert (entry_key(type(one), name_of(one)) == entry_key(type(other), name_of(other))) == same


@given(st.lists(identities, min_size=2, max_size=2))
def test_no_two_identities_share_a_key(two: list[Identity]) -> None:
    one, other = (identity_item(identity, "alice", now=NOW)["PK"] for identity in two)
    assert (one == other) == (two[0] == two[1])


def test_the_row_of_a_user() -> None:
    user = User("a#b", plan="pro", quotas={"hint": "5/day; 9/month", "run": -1}, identities=[Identity.email("a@b")])
    assert row(user) == {
        "PK": {"S": "USR#a%23b"},
        "SK": {"S": "META"},
        "tp": {"S": "usr"},
        "dat": {"M": {
            "plan": {"S": "pro"},
            "rol": {"S": "user"},
            "quo": {"M": {"hint": {"S": "5/day; 9/month"}, "run": {"N": "-1"}}},
            "act": {"BOOL": True},
            "ids": {"L": [{"S": "email:a@b"}]},
        }},
        "upd": {"N": "1790000000"},
        "ver": {"N": "7"},
        "GSI1PK": {"S": "PLAN#pro"},
        "GSI1SK": {"S": "USR#a%23b"},
    }  # fmt: skip


def test_the_row_of_a_plan() -> None:
    assert row(Plan("pro", {"hint": "5/day"})) == {
        "PK": {"S": "PLAN#pro"},
        "SK": {"S": "META"},
        "tp": {"S": "plan"},
        "dat": {"M": {"hint": {"S": "5/day"}}},
        "upd": {"N": "1790000000"},
        "ver": {"N": "7"},
        "GSI1PK": {"S": "PLANS"},
        "GSI1SK": {"S": "PLAN#pro"},
    }


def test_the_rows_of_identities_say_no_key() -> None:
    key = Identity.api_key("an-api-key-that-is-long-enough")
    assert identity_item(key, "alice", now=NOW)["PK"] == {"S": f"KEY#{key.value}"}
    assert identity_item(Identity.email("É@b"), "alice", now=NOW) == {
        "PK": {"S": unicodedata.normalize("NFC", "EMAIL#é@b")},
        "SK": {"S": "META"},
        "tp": {"S": "idn"},
        "usr": {"S": "alice"},
        "crt": {"N": "1790000000"},
    }


def test_what_a_row_does_not_say_is_as_for_a_new_user() -> None:
    found = entry_of(User, {"PK": {"S": "USR#alice"}, "SK": {"S": "META"}, "dat": {"M": {"em": {"S": "a@b"}}}})
    assert (found, found.version) == (User("alice"), 0)


@pytest.mark.parametrize(
    "data",
    [
        {"quo": {"M": {"hint": {"S": "5/fortnight"}}}},
        {"quo": {"M": {"hint": {"N": "5"}}}},
        {"quo": {"M": {"hint": {"BOOL": True}}}},
        {"rol": {"S": "emperor"}},
        {"plan": {"N": "1"}},
        {"ids": {"L": [{"S": "phone:1"}]}},
        {"act": {"S": "yes"}},
    ],
)
def test_a_row_that_makes_no_sense_is_named(data: dict[str, Any]) -> None:
    with pytest.raises(UnreadableEntry, match="the row of usr 'alice' cannot be read"):
        entry_of(User, {"PK": {"S": "USR#alice"}, "SK": {"S": "META"}, "dat": {"M": data}})
