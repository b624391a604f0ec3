"""Users and plans as rows: the layout, and that nothing is lost on the way there and back."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit.directory import Directory
from ratelimit.dynamodb import DynamoDBStore
from ratelimit.dynamodb.directory import DynamoDBDirectoryStore, entry_key, entry_of, entry_values, identity_item
from ratelimit.dynamodb.schema import escape
from ratelimit.errors import StoreMisconfigured, StoreThrottled, StoreUnavailable
from ratelimit.names import MAX_ACTION_BYTES, MAX_USER_BYTES
from ratelimit.quota import UNITS, UNLIMITED, Quota, Quotas, Window
from ratelimit.store.directory import Entry, Identity, IdentityTaken, Plan, UnreadableEntry, User, name_of
from tests.directory.conftest import on_engine
from tests.engines import Engine
from tests.faults import Behaviour, FaultServer, garbage, hang_up, internal_error, slow, throttled
from tests.faults.behaviours import Exchange

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


# Users and plans on a bad day: what is sent again, what is not, and what a caller is told.


OLD = User("alice", identities=[Identity.email("old@example.com")], version=5)
NEW = User("alice", identities=[Identity.email("new@example.com")])


@pytest.fixture
async def table(server: FaultServer, pauses: list[float]) -> AsyncIterator[DynamoDBStore]:
    async with DynamoDBStore(table="people", endpoint=server.endpoint) as table:
        yield table


@pytest.fixture
def people(table: DynamoDBStore) -> DynamoDBDirectoryStore:
    return table.directory


def answering(body: dict[str, Any], status: int = 200) -> Behaviour:
    async def behave(exchange: Exchange) -> bool:
        await exchange.send(status, json.dumps(body).encode())
        return True

    return behave


def cancelled(*codes: str) -> Behaviour:
    """A transaction that was not executed, with a reason for each of its parts."""
    kind = "com.amazonaws.dynamodb.v20120810#TransactionCanceledException"
    reasons = [{"Code": code} for code in codes]
    return answering({"__type": kind, "Message": "cancelled", "CancellationReasons": reasons}, 400)


done = answering({})


@pytest.mark.heavy
async def test_a_changed_entry_is_no_error(server: FaultServer, people: DynamoDBDirectoryStore) -> None:
    server.then(cancelled("ConditionalCheckFailed", "ConditionalCheckFailed", "None"))
    assert not await people.replace(OLD, NEW, now=1)


@pytest.mark.heavy
async def test_a_taken_identity_is_named(server: FaultServer, people: DynamoDBDirectoryStore) -> None:
    server.then(cancelled("None", "ConditionalCheckFailed", "None"))
    with pytest.raises(IdentityTaken, match=r"another user has this email already \(new@example.com\)"):
        await people.replace(OLD, NEW, now=1)


@pytest.mark.heavy
async def test_an_identity_that_is_no_longer_ours_means_an_old_version(
    server: FaultServer, people: DynamoDBDirectoryStore
) -> None:
    server.then(cancelled("None", "None", "ConditionalCheckFailed"))
    assert not await people.replace(OLD, NEW, now=1)


@pytest.mark.heavy
@pytest.mark.parametrize("fault", [cancelled("None", "TransactionConflict"), throttled(), internal_error(), hang_up()])
async def test_a_change_is_sent_again_as_the_same(
    server: FaultServer, people: DynamoDBDirectoryStore, fault: Behaviour
) -> None:
    tokens: list[str] = []

    def noting(behaviour: Behaviour) -> Behaviour:
        async def behave(exchange: Exchange) -> bool:
            tokens.append(exchange.body["ClientRequestToken"])
            return await behaviour(exchange)

        return behave

    server.then(noting(fault), noting(done))
    assert await people.replace(OLD, NEW, now=1)
    assert len(tokens) == 2
    assert len(set(tokens)) == 1


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("reason", "error", "told", "sent"),
    [
        ("TransactionConflict", StoreThrottled, "nothing was written", 3),
        ("ValidationError", StoreMisconfigured, "ValidationError", 1),
    ],
)
async def test_a_change_that_comes_to_nothing(
    server: FaultServer, people: DynamoDBDirectoryStore, reason: str, error: type[Exception], told: str, sent: int
) -> None:
    """Conflicts without end are a throttled store; what will never work is not sent again."""
    server.always(cancelled(reason, "None", "None"))
    with pytest.raises(error, match=told):
        await people.replace(OLD, NEW, now=1)
    assert server.received["TransactWriteItems"] == sent


@pytest.mark.heavy
@pytest.mark.parametrize("fault", [throttled(), internal_error(), hang_up(), garbage()])
async def test_reads_are_sent_again(server: FaultServer, people: DynamoDBDirectoryStore, fault: Behaviour) -> None:
    item = {"PK": {"S": "PLAN#pro"}, "SK": {"S": "META"}, "dat": {"M": {"hint": {"S": "5/day"}}}}
    server.then(fault, answering({"Item": item}))
    assert await people.read(Plan, "pro") == Plan("pro", {"hint": "5/day"})
    server.then(fault, answering({"Items": [item]}))
    assert (await people.page(Plan)).entries == (Plan("pro", {"hint": "5/day"}),)


@pytest.mark.heavy
async def test_a_list_that_lists_nothing_is_no_answer(server: FaultServer, people: DynamoDBDirectoryStore) -> None:
    server.always(answering({}))
    with pytest.raises(StoreUnavailable, match="without items"):
        await people.page(User)


@pytest.mark.heavy
async def test_one_unreadable_row_does_not_hide_the_others(server: FaultServer, people: DynamoDBDirectoryStore) -> None:
    one = Directory(people)

    def row(user: str, role: str) -> Behaviour:
        data = {"rol": {"S": role}, "quo": {"M": {"hint": {"S": "7/day"}}}}
        return answering({"Item": {"PK": {"S": f"USR#{user}"}, "SK": {"S": "META"}, "dat": {"M": data}}})

    for _ in range(5):
        server.then(row("alice", "emperor"))
        assert await one.quotas_for("alice", "hint") is None
    server.then(row("bob", "user"))
    assert str((await one.quotas_for("bob", "hint") or [None])[0]) == "7/day"


@pytest.mark.heavy
async def test_a_slow_table_makes_no_question_slow(server: FaultServer, people: DynamoDBDirectoryStore) -> None:
    server.always(slow(1, done))
    one = Directory(people, deadline=0.02)
    for number in range(20):
        assert await one.quotas_for(f"user-{number}", "hint") is None
    assert one.stats.without == 20
    assert server.received["GetItem"] <= 4  # the failure of the third may be noted when the fourth has begun


@pytest.mark.heavy
async def test_calls_are_counted(engine: Engine) -> None:
    """One read for a user or a plan; one transaction for a change, whatever it touches."""
    async with on_engine(engine) as table:
        people = table.directory
        table.stats.calls.clear()  # those of opening
        user = User("counted", plan="pro", identities=[Identity.email("counted@example.com")])
        old = await people.read(User, "counted")
        assert await people.replace(old, user, now=1_790_000_000_000_000 if old is None else old.version + 1)
        assert await people.find(user.identities[0]) == "counted"
        await people.page(User, plan="pro")
        assert table.stats.calls == {"GetItem": 2, "TransactWriteItems": 1, "Query": 1}
        assert table.stats.write_units > 0
        assert table.stats.read_units > 0
