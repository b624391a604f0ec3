"""Which quotas hold, and what a failing store changes about it: nothing but their age."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from ratelimit.directory import Contended, Directory
from ratelimit.errors import ConfigError, InvalidUser, StoreThrottled, StoreUnavailable
from ratelimit.limiter import Limiter
from ratelimit.policy import Policy
from ratelimit.quota import INACTIVE, UNLIMITED, Quotas, to_quotas
from ratelimit.store import MemoryStore
from ratelimit.store.directory import DirectoryStore, Entry, Identity, IdentityTaken, Plan, User
from ratelimit.store.memory import MemoryDirectoryStore
from ratelimit.testing import FakeClock

DOWN = StoreUnavailable("the store is down")
PRO = Plan("pro", {"hint": "50/day", "run": "unlimited"})
ALICE = User("alice", plan="pro", quotas={"hint": "7/day"})
FIFTY, SEVEN = to_quotas("50/day"), to_quotas("7/day")


async def directory(**options: Any) -> tuple[Directory, CountingDirectoryStore, FakeClock]:
    store, clock = CountingDirectoryStore(), FakeClock()
    await fill(store, PRO, ALICE, User("bob", plan="pro"))
    return Directory(store, clock=clock, **options), store, clock


@pytest.mark.parametrize(
    ("user", "action", "quotas"),
    [
        (User("alice", quotas={"hint": "7/day"}, plan="pro"), "hint", SEVEN),
        (User("alice", quotas={"hint": "7/day"}, plan="pro"), "run", UNLIMITED),
        (User("alice", plan="pro"), "hint", FIFTY),
        (User("alice", plan="pro"), "other", None),
        (User("alice", plan="gone"), "hint", None),
        (User("alice"), "hint", None),
        (User("alice", role="admin", plan="pro"), "hint", UNLIMITED),
        (User("alice", role="admin", quotas={"hint": "7/day"}), "hint", SEVEN),
        (User("alice", role="admin", quotas={"hint": "7/day"}, active=False), "hint", INACTIVE),
        (User("alice", plan="pro", active=False), "run", INACTIVE),
    ],
)
async def test_which_quotas_hold(store: DirectoryStore, user: User, action: str, quotas: Quotas | None) -> None:
    one = Directory(store)
    await one.put_plan(PRO)
    await one.put_user(user)
    found = await one.quotas_for("alice", action)
    assert found == quotas
    assert (found is UNLIMITED) == (quotas is UNLIMITED)
    await one.remove_user("alice")
    assert await one.quotas_for("alice", action) is None


async def test_the_limiter_checks_with_them() -> None:
    one, _, clock = await directory()
    await one.put_user(User("mallory", active=False))
    limiter = Limiter(MemoryStore(), [Policy("hint", "1/day")], clock=clock)

    async def allowed(user: str, times: int) -> int:
        quotas = [await one.quotas_for(user, "hint") for _ in range(times)]
        return sum([(await limiter.check(user, "hint", quotas=each)).allowed for each in quotas])

    assert [await allowed(user, 60) for user in ("alice", "bob", "carol", "mallory")] == [7, 50, 1, 0]
    refused = await limiter.check("mallory", "hint", quotas=INACTIVE)
    assert refused.retry_after is None


async def test_answers_are_kept_for_a_short_life() -> None:
    one, store, clock = await directory()
    for _ in range(3):
        assert await one.quotas_for("bob", "hint") == FIFTY
    assert store.taken() == {"User": 1, "Plan": 1}
    clock.advance(29.999)
    await one.quotas_for("bob", "hint")
    assert store.taken() == {}
    clock.advance(0.001)
    await one.quotas_for("bob", "hint")
    assert store.taken() == {"User": 1, "Plan": 1}


async def test_so_is_that_there_is_nothing() -> None:
    one, store, _ = await directory()
    for _ in range(3):
        assert await one.quotas_for("nobody", "hint") is None
        assert await one.find(Identity.email("nobody@example.com")) is None
        assert await one.plan("nothing") is None
    assert store.taken() == {"User": 1, "Identity": 1, "Plan": 1}


async def test_a_clock_that_steps_back_makes_no_answer_older_than_its_life() -> None:
    one, store, clock = await directory()
    await one.user("bob")
    clock.advance(-3600)
    await one.user("bob")
    assert store.taken() == {"User": 2}


async def test_no_plan_is_read_where_it_would_not_count() -> None:
    one, store, _ = await directory()
    await fill(store, User("root", role="admin", plan="pro"))
    await one.quotas_for("root", "hint")
    await one.quotas_for("alice", "hint")
    assert store.taken() == {"User": 2}


async def test_simultaneous_questions_share_one_read() -> None:
    one, store, _ = await directory()
    store.fault = gate = Gate()
    asking = [asyncio.create_task(one.quotas_for("bob", "hint")) for _ in range(100)]
    await asyncio.sleep(0)
    gate.open()
    assert await asyncio.gather(*asking) == [FIFTY] * 100
    assert store.taken() == {"User": 1, "Plan": 1}
    assert one.stats.shared == 198


async def test_who_is_cancelled_harms_no_other() -> None:
    one, store, _ = await directory()
    store.fault = gate = Gate()
    first, second, third = (asyncio.create_task(one.user("alice")) for _ in range(3))
    await asyncio.sleep(0)
    first.cancel()
    third.cancel()
    await asyncio.sleep(0)
    gate.open()
    assert await second == ALICE
    assert first.cancelled()
    assert third.cancelled()
    assert store.taken() == {"User": 1}


async def test_a_read_whose_askers_have_all_gone_is_kept() -> None:
    one, store, _ = await directory()
    store.fault = gate = Gate()
    asking = asyncio.create_task(one.user("alice"))
    await asyncio.sleep(0)
    asking.cancel()
    gate.open()
    for _ in range(5):
        await asyncio.sleep(0)
    assert await one.user("alice") == ALICE
    assert store.taken() == {"User": 1}


async def test_a_failing_store_leaves_what_was_known() -> None:
    one, store, clock = await directory()
    await one.quotas_for("bob", "hint")
    store.fault = failing(DOWN)
    clock.advance(100_000)
    assert await one.quotas_for("bob", "hint") == FIFTY
    assert await one.user("bob") == User("bob", plan="pro")
    assert one.stats.stale == 3


async def test_where_nothing_was_known_the_policy_decides() -> None:
    one, store, _ = await directory()
    store.fault = failing(DOWN)
    assert await one.quotas_for("bob", "hint") is None
    assert one.stats.without == 1
    for ask in (one.user("bob"), one.plan("pro"), one.find(Identity.email("bob@example.com"))):
        with pytest.raises(StoreUnavailable):
            await ask


async def test_a_plan_that_cannot_be_read_does_not_hide_what_the_user_has() -> None:
    one, store, _ = await directory()
    await one.user("alice")
    store.fault = failing(DOWN)
    assert await one.quotas_for("alice", "hint") == SEVEN
    assert await one.quotas_for("alice", "run") is None


async def test_a_store_that_never_answers_is_left_at_the_deadline() -> None:
    one, store, clock = await directory(deadline=0.02)
    await one.user("alice")
    clock.advance(60)
    store.fault = hang
    found = await asyncio.gather(*(one.quotas_for(user, "hint") for user in ("alice", "bob", "carol")))
    assert found == [SEVEN, None, None]


async def test_a_store_that_keeps_failing_is_left_alone_for_a_while(caplog: pytest.LogCaptureFixture) -> None:
    one, store, clock = await directory()
    store.fault = failing(DOWN)
    with caplog.at_level(logging.WARNING, logger="ratelimit"):
        for number in range(20):
            assert await one.quotas_for(f"user-{number}", "hint") is None
        assert store.taken() == {"User": 3}
        clock.advance(1)
        for number in range(20):
            await one.quotas_for(f"user-{number}", "hint")
        assert store.taken() == {"User": 1}
        store.fault = None
        clock.advance(1.9)
        assert await one.quotas_for("alice", "hint") is None
        clock.advance(0.1)
        assert await one.quotas_for("alice", "hint") == SEVEN
    assert [record.message.split(",")[0].split(":")[0] for record in caplog.records] == [
        "users and plans cannot be read",
        "users and plans can be read again",
    ]
    assert (one.stats.failures, one.stats.spared) == (4, 17 + 19 + 1)


async def test_one_throttled_key_does_not_shut_out_the_others() -> None:
    one, store, _ = await directory()
    store.fault = failing(StoreThrottled("slow down"))
    for _ in range(10):
        await one.quotas_for("bob", "hint")
    store.fault = None
    assert await one.quotas_for("alice", "hint") == SEVEN


async def test_a_bug_is_not_a_failing_store() -> None:
    one, store, _ = await directory()
    store.fault = failing(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await one.quotas_for("alice", "hint")


async def test_what_is_remembered_is_bounded() -> None:
    one, store, _ = await directory(max_users=10)
    for number in range(50):
        await one.quotas_for(f"user-{number}", "hint")
        await one.quotas_for("alice", "hint")
    assert len(one._users) == 10
    assert store.taken() == {"User": 51}
    assert one.stats.evicted == 41


async def test_a_change_shows_at_once_in_this_process() -> None:
    one, _, _ = await directory()
    assert await one.quotas_for("alice", "hint") == SEVEN
    await one.change_user("alice", lambda old: User("alice", plan="pro"))
    assert await one.quotas_for("alice", "hint") == FIFTY
    await one.put_plan(Plan("pro", {"hint": "7/day"}))
    assert await one.quotas_for("alice", "hint") == SEVEN
    await one.remove_plan("pro")
    assert await one.quotas_for("alice", "hint") is None


async def test_a_read_that_a_change_overtook_is_not_kept() -> None:
    one, store, _ = await directory()
    store.fault = gate = Gate()
    asking = asyncio.create_task(one.user("alice"))
    await asyncio.sleep(0)
    store.fault = None
    await one.put_user(User("alice"))
    gate.open()
    await asking
    assert await one.user("alice") == User("alice")


async def test_simultaneous_changes_are_all_made(store: DirectoryStore) -> None:
    one = Directory(store)

    def adding(number: int) -> Any:
        return lambda old: User("dora", quotas={**(old.quotas if old else {}), f"action-{number}": "5/day"})

    async def add(number: int) -> None:
        while True:
            try:
                await one.change_user("dora", adding(number))
            except (Contended, StoreThrottled):
                continue
            return

    await one.remove_user("dora")
    await asyncio.gather(*(add(number) for number in range(6)))
    found = await store.read(User, "dora")
    assert found is not None
    assert set(found.quotas) == {f"action-{number}" for number in range(6)}


async def test_users_are_found_by_their_identities(store: DirectoryStore) -> None:
    one = Directory(store)
    email, key = Identity.email("erin@example.com"), Identity.api_key("erins-api-key-000", pepper=b"pepper")
    await one.put_user(User("erin", identities=[email, key]))
    assert await one.find(email) == await one.find(key) == User("erin", identities=[email, key])
    assert await one.find(Identity.api_key("erins-api-key-000")) is None
    with pytest.raises(IdentityTaken):
        await one.put_user(User("frank", identities=[email]))
    await one.put_user(User("erin", identities=[email]))
    assert [await one.find(identity) for identity in (email, key)] == [User("erin", identities=[email]), None]
    assert await one.remove_user("erin")
    assert not await one.remove_user("erin")
    assert await one.find(email) is None


async def test_an_identity_taken_away_elsewhere_does_not_open_the_door() -> None:
    one, store, _ = await directory()
    email = Identity.email("alice@example.com")
    elsewhere = Directory(store)
    await elsewhere.put_user(User("alice", identities=[email]))
    assert await one.find(email) is not None
    await elsewhere.put_user(User("alice"))
    one._users.forget("alice")
    assert await one.find(email) is None


async def test_who_changes_in_vain_is_told() -> None:
    one, store, _ = await directory()

    async def never(*_: Any, **__: Any) -> bool:
        return False

    store.replace = never  # type: ignore[method-assign]
    with pytest.raises(Contended, match="user 'alice' was changed by others 10 times over"):
        await one.put_user(User("alice"))


async def test_lists(store: DirectoryStore) -> None:
    one = Directory(store)
    await one.put_plan(Plan("list", {}))
    for number in range(3):
        await one.put_user(User(f"listed-{number}", plan="list"))
    assert sorted([user.id async for user in one.users(plan="list")]) == ["listed-0", "listed-1", "listed-2"]
    assert {"listed-0", "listed-1"} <= {user.id async for user in one.users()}
    assert "list" in [plan.name async for plan in one.plans()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache_for": -1}, "cache_for: must be a number of seconds from 0 up"),
        ({"cache_for": float("inf")}, "cache_for: must be a number of seconds from 0 up"),
        ({"max_users": 0}, "max_users: must be at least 1"),
        ({"deadline": 0}, "deadline: must be more than 0 and at most 60 seconds"),
    ],
)
async def test_bad_settings_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        await directory(**options)
    assert str(caught.value).startswith(message)


async def test_what_cannot_be_stored_is_not_looked_for() -> None:
    one, store, _ = await directory()
    for user in ("", "a\nb", "x" * 3000):
        with pytest.raises(InvalidUser):
            await one.quotas_for(user, "hint")
        with pytest.raises(ConfigError, match="plan: the plan's name"):
            await one.plan(user)
    assert store.taken() == {}


# Directory stores that tell on their caller, or fail on request.


T = TypeVar("T", bound=Entry)


class CountingDirectoryStore(MemoryDirectoryStore):
    """A memory store that counts reads; each first does `fault`: raise, hang, or wait for a word."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()
        self.fault: Callable[[], Awaitable[None]] | None = None

    def taken(self) -> dict[str, int]:
        """The reads since last asked."""
        reads, self.reads = dict(self.reads), Counter()
        return reads

    async def read(self, kind: type[T], name: str) -> T | None:
        self.reads[kind.__name__] += 1
        if self.fault is not None:
            await self.fault()
        return await super().read(kind, name)

    async def find(self, identity: Identity) -> str | None:
        self.reads["Identity"] += 1
        if self.fault is not None:
            await self.fault()
        return await super().find(identity)


class Gate:
    """A fault: holds whoever comes until `open`."""

    def __init__(self) -> None:
        self._opened = asyncio.Event()

    async def __call__(self) -> None:
        await self._opened.wait()

    def open(self) -> None:
        self._opened.set()


async def hang() -> None:
    """Never answers; only a deadline ends it."""
    await asyncio.Event().wait()


def failing(error: Exception) -> Callable[[], Awaitable[None]]:
    """Answers with this error."""

    async def fault() -> None:
        raise error

    return fault


async def fill(store: MemoryDirectoryStore, *entries: Entry) -> None:
    """Put them there, where there is nothing yet."""
    for entry in entries:
        assert await store.replace(None, entry, now=1)
