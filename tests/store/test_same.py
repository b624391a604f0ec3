"""Memory and DynamoDB run the same histories with the same outcomes, write for write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ratelimit.names import Key
from ratelimit.store import Add, Drop, Expect, MemoryStore, Op, Put, Write
from tests.engines import Engine
from tests.store.conftest import dynamodb, new_key

FIELDS = ["d20758", "m10_2893001", "gd", "u261121", "u2611"]
small = st.integers(-3, 6)
bound = st.none() | small


@st.composite
def changes(draw: st.DrawFn, field: str) -> Op | None:
    match draw(st.sampled_from(["add", "add", "put", "drop", "none"])):
        case "add":
            return Add(field, draw(small), draw(bound))
        case "put":
            return Put(field, draw(small))
        case "drop":
            return Drop(field)
    return None


@st.composite
def expectations(draw: st.DrawFn, field: str) -> Op | None:
    if draw(st.integers(0, 3)):
        return None
    return Expect(field, draw(bound), draw(bound), draw(st.booleans()))


@st.composite
def writes(draw: st.DrawFn) -> Write:
    fields = draw(st.lists(st.sampled_from(FIELDS), unique=True, max_size=4))
    ops = [op for field in fields for op in (draw(expectations(field)), draw(changes(field))) if op is not None]
    return Write(
        tuple(draw(st.permutations(ops))), draw(st.integers(1_900_000_000, 2_000_000_000)), draw(st.booleans())
    )


async def replay(stores: tuple[Any, Any], keys: Sequence[Key], history: list[list[Write]]) -> None:
    """A step of several writes is one of all keys at once."""
    for step in history:
        memory, table = [await apply(store, list(zip(keys, step, strict=False))) for store in stores]
        assert table == memory, step
    memory, table = [await store.read_all(keys) for store in stores]
    assert table == memory


async def apply(store: Any, step: list[tuple[Key, Write]]) -> object:
    return await (store.apply(*step[0], now=0) if len(step) == 1 else store.apply_all(step, now=0))


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "slow"])
async def test_same_outcomes(engine: Engine, fast: bool) -> None:
    """One event loop and one connection for all examples, so hypothesis only makes the histories."""
    histories: list[list[list[Write]]] = []
    steps = st.lists(writes(), min_size=1, max_size=1) | st.lists(writes(), min_size=2, max_size=3)

    @settings(max_examples=150, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(steps, min_size=1, max_size=8))
    def collect(history: list[list[Write]]) -> None:
        histories.append(history)

    collect()
    async with dynamodb(engine, fast=fast) as table:
        for history in histories:
            await replay((MemoryStore(), table), [new_key() for _ in range(3)], history)
