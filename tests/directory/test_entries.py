"""Plans, users and identities: what is accepted, and where an error points."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit.errors import ConfigError
from ratelimit.quota import INACTIVE, UNLIMITED, Quota
from ratelimit.store.directory import Identity, Plan, User

KEY = "an-api-key-that-is-long-enough"


# What types would forbid: callers without a type checker pass it all the same.
PLAN: Any = Plan
USER: Any = User


def test_a_plan_takes_quotas_in_every_form() -> None:
    plan = Plan("pro", {"a": "5/day", "b": Quota(5, "day"), "c": ["5/day"], "d": -1, "e": "unlimited"})
    assert {plan.quotas[action] for action in "abc"} == {(Quota(5, "day"),)}
    assert plan.quotas["d"] is plan.quotas["e"] is UNLIMITED


def test_values_do_not_change() -> None:
    source = {"hint": "5/day"}
    plan = Plan("pro", source)
    source["hint"] = "6/day"
    assert plan.quotas["hint"] == (Quota(5, "day"),)
    with pytest.raises(TypeError):
        plan.quotas["hint"] = UNLIMITED  # type: ignore[index]
    with pytest.raises(AttributeError):
        plan.name = "free"  # type: ignore[misc]


def test_a_version_is_no_part_of_the_value() -> None:
    assert Plan("pro", {}, version=1) == Plan("pro", {}, version=2)
    assert User("alice", version=1) == User("alice", version=2)


def test_nothing_fits_for_who_is_inactive() -> None:
    assert [quota.limit for quota in INACTIVE] == [0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PLAN("", {}), "name: the plan's name is empty"),
        (lambda: PLAN("p" * 65, {}), "name: the plan's name takes 65 bytes, and 64 are the most"),
        (lambda: PLAN("pro", {"hint": "5/fortnight"}), "quotas.hint: unknown unit 'fortnight'"),
        (lambda: PLAN("pro", {"hint": ["5/day", "x"]}), "quotas.hint[1]: 'x' is not a quota"),
        (lambda: PLAN("pro", {"": "5/day"}), "quotas: the action is empty"),
        (lambda: PLAN("pro", {"hint": ()}), "quotas.hint: no quota given"),
        (lambda: PLAN("pro", "5/day"), "quotas: expected quotas by action"),
        (lambda: PLAN("pro", {f"a{n}": "5/day" for n in range(201)}), "quotas: 201 actions are named"),
        (lambda: USER(""), "id: the user is empty"),
        (lambda: USER("alice", plan="a\nb"), "plan: the plan's name holds the control character"),
        (lambda: USER("alice", role="root"), "role: unknown value 'root'; use one of 'user', 'admin'"),
        (lambda: USER("alice", active=1), "active: must be true or false, not 1"),
        (lambda: USER("alice", identities=["a@b"]), "identities[0]: expected Identity.email(address)"),
        (lambda: USER("alice", identities=[Identity.email(f"{n}@b") for n in range(21)]), "identities: 21 are named"),
        (lambda: Identity.email("alice"), "email: 'alice' is not an e-mail address"),
        (lambda: Identity.email("a b@c"), "email: 'a b@c' is not an e-mail address"),
        (lambda: Identity.email("a@" + "b" * 300), "email: takes more than 254 bytes"),
        (lambda: Identity("email", "Alice@b"), "email: is not lower-cased"),
        (lambda: Identity.api_key("short"), "api_key: must be text of 16 to 4096 characters"),
        (lambda: Identity.api_key("\ud800" * 20), "api_key: holds characters that are no valid Unicode"),
        (lambda: Identity.parse("phone:1"), "kind: unknown value 'phone'"),
    ],
)
def test_bad_values_are_named(make: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("address", ["Alice@Example.COM", " alice@example.com\n", "ALICE@example.com"])
def test_an_email_is_one_however_it_is_written(address: str) -> None:
    assert Identity.email(address) == Identity.email("alice@example.com")


@given(st.emails() | st.text(min_size=1).map(lambda text: f"{text}@b"))
def test_the_form_of_an_email_is_stable(address: str) -> None:
    try:
        one = Identity.email(address)
    except ConfigError:
        return
    assert Identity.email(one.value) == Identity.parse(str(one)) == one


def test_a_key_is_kept_as_a_digest_of_its_own_for_each_pepper() -> None:
    identities = [Identity.api_key(KEY), Identity.api_key(KEY, pepper=b"a"), Identity.api_key(KEY, pepper=b"b")]
    assert len(set(identities)) == 3
    assert Identity.api_key(KEY, pepper=b"a") == identities[1]
    assert KEY not in repr(identities)


def test_a_digest_stays_the_same_from_version_to_version() -> None:
    """A table that is in use depends on it."""
    assert Identity.api_key(KEY, pepper=b"pepper").value == (
        "ea3d563224f0e18b2d604c3a743b0090b7b64a7c09876abb83926f8d96c0f842"
    )


def test_a_key_cannot_pass_for_a_digest() -> None:
    with pytest.raises(ConfigError) as caught:
        Identity("api_key", KEY)
    assert KEY not in str(caught.value)
