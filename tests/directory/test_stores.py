"""What every store of users and plans promises, on memory and on an engine."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit.errors import ConfigError, InvalidCursor, InvalidInput
from ratelimit.quota import INACTIVE, UNLIMITED, Quota
from ratelimit.store.directory import DirectoryStore, Entry, Identity, IdentityTaken, Plan, User

NOW = 1_790_000_000_000_000
T = TypeVar("T", bound=Entry)


async def put(store: DirectoryStore, entry: T) -> T:
    """What the store made of it."""
    name = entry.id if isinstance(entry, User) else entry.name
    assert await store.replace(await store.read(type(entry), name), entry, now=NOW)
    stored = await store.read(type(entry), name)
    assert stored is not None
    return stored


def email(user: str) -> Identity:
    return Identity.email(f"{user}@example.com")


async def test_nothing_is_there_at_first(store: DirectoryStore, user: str, plan: str) -> None:
    assert await store.read(User, user) is None
    assert await store.read(Plan, plan) is None
    assert await store.find(email(user)) is None


async def test_a_user_comes_back_as_it_was(store: DirectoryStore, user: str, plan: str) -> None:
    one = User(
        user,
        plan=plan,
        quotas={"hint": "5/day; 100/month", "run #1%": "unlimited", "x": "10/second burst 20", "none": "0/day"},
        role="admin",
        active=False,
        identities=[email(user), Identity.api_key(f"key-of-{user}")],
    )
    stored = await put(store, one)
    assert stored == one
    assert stored.quotas["run #1%"] is UNLIMITED
    assert stored.version > 0


async def test_a_plan_comes_back_as_it_was(store: DirectoryStore, plan: str) -> None:
    one = Plan(plan, {"hint": "5/day", "run": -1})
    assert await put(store, one) == one


async def test_a_plan_and_a_user_of_one_name_are_two(store: DirectoryStore, user: str) -> None:
    await put(store, Plan(user, {"hint": "5/day"}))
    assert await store.read(User, user) is None
    await put(store, User(user))
    assert await store.read(Plan, user) == Plan(user, {"hint": "5/day"})


@pytest.mark.parametrize("odd", ["a#b", "a%23b", "a/b", "é🦊", "META", "#"])
async def test_odd_names(store: DirectoryStore, user: str, odd: str) -> None:
    one = User(user + odd, plan=f"{user[:24]}{odd}")
    assert await put(store, one) == one
    assert [found.id for found in (await store.page(User, plan=one.plan)).entries] == [one.id]


async def test_who_read_an_old_version_changes_nothing(store: DirectoryStore, user: str) -> None:
    first = await put(store, User(user))
    second = await put(store, User(user, role="admin"))
    assert second.version > first.version
    for old in (None, first):
        assert not await store.replace(old, User(user, active=False, identities=[email(user)]), now=NOW)
        assert not await store.replace(old, None, now=NOW) if old else True
    assert await store.read(User, user) == second
    assert await store.find(email(user)) is None


async def test_of_many_who_change_at_once_one_succeeds(store: DirectoryStore, user: str) -> None:
    old = await put(store, User(user))
    wanted = [User(user, quotas={"hint": f"{n}/day"}, identities=[email(f"{user}-{n}")]) for n in range(5)]
    done = [await store.replace(old, new, now=NOW) for new in wanted[:1]]
    done += await asyncio.gather(*(store.replace(old, new, now=NOW) for new in wanted[1:]))
    assert done == [True, False, False, False, False]
    assert await store.read(User, user) == wanted[0]


async def test_removed_is_gone_and_may_come_back(store: DirectoryStore, user: str) -> None:
    first = await put(store, User(user, identities=[email(user)]))
    assert await store.replace(first, None, now=NOW)
    assert await store.read(User, user) is None
    assert await store.find(email(user)) is None
    assert not await store.replace(first, None, now=NOW)
    await put(store, User(user))


async def test_a_user_is_found_by_every_identity(store: DirectoryStore, user: str) -> None:
    key = Identity.api_key(f"key-of-{user}")
    await put(store, User(user, identities=[email(user), key]))
    assert [await store.find(identity) for identity in (email(user), key)] == [user, user]
    await put(store, User(user, identities=[key]))
    assert [await store.find(identity) for identity in (email(user), key)] == [None, user]


async def test_an_identity_is_one_users(store: DirectoryStore, user: str) -> None:
    other = f"{user}-2"
    await put(store, User(user, identities=[email(user)]))
    with pytest.raises(IdentityTaken, match="another user has this email"):
        await store.replace(None, User(other, identities=[email(other), email(user)]), now=NOW)
    assert await store.read(User, other) is None
    assert [await store.find(email(name)) for name in (user, other)] == [user, None]
    await put(store, User(user))
    await put(store, User(other, identities=[email(user)]))
    assert await store.find(email(user)) == other


async def test_pages_of_a_plan_hold_each_user_once(store: DirectoryStore, user: str, plan: str) -> None:
    names = {f"{user}-{n}" for n in range(5)}
    for name in names:
        await put(store, User(name, plan=plan))
    await put(store, User(f"{user}-5", plan=f"{plan}-2"))
    found: list[str] = []
    cursor = None
    for _ in range(4):
        page = await store.page(User, plan=plan, limit=2, cursor=cursor)
        assert len(page.entries) <= 2
        found += (one.id for one in page.entries)
        if (cursor := page.cursor) is None:
            break
    assert cursor is None
    assert sorted(found) == sorted(names)
    await put(store, User(f"{user}-0", plan=f"{plan}-2"))
    assert len((await store.page(User, plan=plan)).entries) == 4


async def test_all_users_and_all_plans(store: DirectoryStore, user: str, plan: str) -> None:
    await put(store, Plan(plan, {"hint": "5/day"}))
    for one in (User(user, plan=plan, identities=[email(user)]), User(f"{user}-2"), User(f"{user}-3", plan="no-such")):
        await put(store, one)
    users, plans = await everything(store, User), await everything(store, Plan)
    assert {one.id for one in users} >= {user, f"{user}-2", f"{user}-3"}
    assert len({one.id for one in users}) == len(users)
    assert plan in {one.name for one in plans}
    assert Plan(plan, {"hint": "5/day"}) in plans


async def everything(store: DirectoryStore, kind: type[T]) -> list[T]:
    found: list[T] = []
    cursor = None
    while True:
        page = await store.page(kind, limit=2, cursor=cursor)
        found += page.entries
        if (cursor := page.cursor) is None:
            return found


async def test_a_cursor_is_good_for_its_list_only(store: DirectoryStore, user: str, plan: str) -> None:
    for n in range(3):
        await put(store, User(f"{user}-{n}", plan=plan))
    cursor = (await store.page(User, plan=plan, limit=1)).cursor
    assert cursor is not None
    with pytest.raises(InvalidCursor, match="another list"):
        await store.page(User, cursor=cursor)
    for damaged in ("", "x", cursor[:-3], "é", cursor + "!"):
        with pytest.raises(InvalidCursor):
            await store.page(User, plan=plan, cursor=damaged)


@pytest.mark.parametrize("limit", [0, -1, 1001, 2.5, True])
async def test_limits_of_a_page(store: DirectoryStore, limit: int) -> None:
    with pytest.raises(InvalidInput, match="limit"):
        await store.page(User, limit=limit)


async def test_one_name_cannot_take_the_place_of_another(store: DirectoryStore, user: str) -> None:
    for old, new in ((User(user), User("other")), (User(user), Plan(user, {})), (None, None)):
        with pytest.raises(ValueError, match=r"nothing|another name"):
            await store.replace(old, new, now=NOW)


# Plans, users and identities: what is accepted, and where an error points.


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
