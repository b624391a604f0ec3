"""A limiter that knows its users: their plan's quotas go over the policy's, and nothing else of the policy changes."""

from __future__ import annotations

import pytest

from ratelimit import Directory, Limiter, MemoryStore, Plan, Policy, UnknownAction, User
from ratelimit.policy import Mode
from ratelimit.testing import FakeClock


async def with_users(mode: Mode = "enforce") -> Limiter:
    store, clock = MemoryStore(), FakeClock()
    directory = Directory(store.directory, clock=clock)
    await directory.put_plan(Plan("pro", {"hint": "3/day burst 9", "dance": "1/day"}))
    await directory.put_user(User("alice", plan="pro"))
    await directory.put_user(User("root", role="admin"))
    await directory.put_user(User("mallory", plan="pro", active=False))
    return Limiter(store, [Policy("hint", "1/day", mode=mode)], clock=clock, directory=directory)


@pytest.mark.parametrize(("user", "admitted"), [("alice", 3), ("bob", 1), ("root", 9), ("mallory", 0)])
async def test_users_have_the_quotas_of_their_plans(user: str, admitted: int) -> None:
    one = await with_users()
    assert sum([(await one.check(user, "hint")).allowed for _ in range(9)]) == admitted


async def test_a_plan_may_name_an_action_that_no_policy_does() -> None:
    one = await with_users()
    assert [(await one.check("alice", "dance")).allowed for _ in range(2)] == [True, False]
    with pytest.raises(UnknownAction):
        await one.check("bob", "dance")


async def test_every_verb_goes_by_them() -> None:
    one = await with_users()
    assert (await one.peek("alice", "hint")).limit == 3
    assert (await one.charge("alice", "hint", 3)).limit == 3
    await one.refund("alice", "hint", 2)
    assert (await one.peek("alice", "hint")).remaining == 2


async def test_quotas_of_the_call_go_over_the_plans() -> None:
    one = await with_users()
    assert (await one.check("alice", "hint", quotas="7/day")).limit == 7


async def test_a_user_who_is_not_active_is_told_apart_from_one_without_quota() -> None:
    one = await with_users()
    refused = await one.check("mallory", "hint")
    assert (refused.allowed, refused.reason, refused.retry_after, refused.quotas) == (False, "inactive", None, ())
    assert (await one.peek("mallory", "hint")) == refused


async def test_the_policys_mode_still_holds() -> None:
    one = await with_users(mode="shadow")
    decisions = [await one.check("alice", "hint") for _ in range(5)]
    assert [decision.shadow_denied for decision in decisions] == [False] * 3 + [True] * 2
