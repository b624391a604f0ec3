"""What is peculiar to the earlier layout: two kinds of keys for one user, and seconds of which it kept one event."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit.migrate import Counts, Entity, MigrationPlan, dry_run, run
from ratelimit.migrate.dynamodb import CollisionCounter
from tests.engines import Engine
from tests.migrate.legacy_table import fill
from tests.migrate.plans import BrokenOff, bring, check, events_in, plan_of, unheard

NOON = int(datetime.now(UTC).timestamp()) // 86_400 * 86_400 - 43_200


def use(pk: str, second: int) -> dict[str, Any]:
    day = datetime.fromtimestamp(second, UTC)
    return {
        "PK": {"S": f"{pk}#ULOG#{day:%Y%m%d}"}, "SK": {"S": f"ULOG#{second}#hint"}, "tp": {"S": "ulog"},
        "dat": {"M": {"act": {"S": "hint"}}}, "crt": {"N": str(second)},
    }  # fmt: skip


async def source(engine: Engine, *items: dict[str, Any]) -> str:
    return await fill(engine.store_url(f"earlier-{uuid4().hex[:8]}"), items)


async def test_one_user_under_both_kinds_of_keys(engine: Engine, table: str, tmp_path: Path) -> None:
    """The same use is there once, and so it counts once."""
    both = [use(f"{kind}#a@example.com", NOON) for kind in ("USR", "EMAIL")]
    asked = plan_of(await source(engine, *both), table, tmp_path)
    await bring(asked)
    assert len(await events_in(table)) == 1
    assert (await check(asked)).same


@pytest.mark.slow
async def test_suspicious_seconds_are_counted_once_also_when_broken_off(
    engine: Engine, table: str, tmp_path: Path
) -> None:
    busy = [use(f"USR#user-{user}", NOON + second) for user in range(4) for second in (0, 1, 5)]
    others = [{"PK": {"S": "CHAT#1"}, "SK": {"S": f"LINE#{number}"}} for number in range(5)]
    asked = plan_of(await source(engine, *busy, *others), table, tmp_path, batch_size=4)
    expected = ["left alone, as they hold no usage: 5 items CHAT#… / LINE", "8 seconds are suspicious"]
    assert _starts((await dry_run(asked, listener=unheard)).notes) == expected
    await _break_off(asked, "events")
    await _break_off(asked, "counters")
    assert _starts((await bring(asked)).notes) == expected
    assert _starts((await check(asked)).notes) == expected


@given(st.lists(st.tuples(st.integers(0, 6), st.sampled_from("abc")), unique=True))
def test_a_second_is_suspicious_beside_another(found: list[tuple[int, str]]) -> None:
    collisions = CollisionCounter()
    for second, action in sorted(found):
        collisions.saw("one", action, second)
    busy = {
        second
        for second, action in found
        if any((other != action and at == second) or (other == action and abs(at - second) == 1) for at, other in found)
    }
    assert collisions.seconds == len(busy)


async def _break_off(asked: MigrationPlan, within: Entity) -> None:
    """After the second batch of these."""
    heard = 0

    def tell(entity: Entity, counts: Counts, done: int, size: int | None) -> None:
        nonlocal heard
        heard += entity == within
        if heard == 3:
            raise BrokenOff

    with pytest.raises(BrokenOff):
        await run(asked, listener=tell)


def _starts(notes: list[str]) -> list[str]:
    return [note.partition(":" if note[0].isdigit() else "\n")[0] for note in notes if "not empty" not in note]
