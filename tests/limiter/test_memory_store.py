"""What is the embedded store's own: its bounds. Everything else it shares with the other stores' suite."""

from __future__ import annotations

import pytest

from ratelimit.errors import InvalidInput
from ratelimit.limiter import Limiter
from ratelimit.names import Key
from ratelimit.policy import Policy
from ratelimit.store import Add, MemoryStore, Write
from ratelimit.testing import FakeClock


async def test_the_number_of_keys_is_bounded_and_what_gave_way_is_counted() -> None:
    store = MemoryStore(max_keys=10)
    one = Limiter(store, [Policy("hint", "5/day")], clock=FakeClock())
    for number in range(25):
        await one.check(f"user-{number}", "hint")
    assert (len(store), store.evicted) == (10, 15)


async def test_the_longest_unwritten_gives_way() -> None:
    store = MemoryStore(max_keys=2)
    one = Limiter(store, [Policy("hint", "5/day")], clock=FakeClock())
    for user in ("alice", "bob", "alice", "carol"):
        await one.check(user, "hint")
    assert await store.read(Key("alice", "hint"))
    assert not await store.read(Key("bob", "hint"))


async def test_expired_keys_go_as_new_ones_come() -> None:
    store = MemoryStore()
    for number in range(10):
        await store.apply(Key(f"user-{number}", "hint"), Write((Add("d1", 1),), expires_at=100), now=0)
    for number in range(5):
        await store.apply(Key(f"new-{number}", "hint"), Write((Add("d1", 1),), expires_at=300), now=200_000_000)
    assert len(store) == 5
    assert store.evicted == 0


@pytest.mark.parametrize("max_keys", [0, -1, 1.5])
def test_the_bound_must_be_a_number(max_keys: float) -> None:
    with pytest.raises(InvalidInput):
        MemoryStore(max_keys=max_keys)  # type: ignore[arg-type]
