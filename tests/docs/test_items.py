"""The items that `docs/data-model.md` shows are those that an engine holds."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import pytest

from docs.hooks.items import NAMES, PLAN, USER, events, request_block, sample_block, samples, spend
from docs.hooks.pages import MARK
from ratelimit import open_store
from ratelimit.clock import SystemClock
from ratelimit.testing import FakeClock
from tests.docs.pages import text_of
from tests.engines import Engine

PAGE = text_of("docs/data-model.md")


async def test_an_engine_holds_just_these_items(engine: Engine) -> None:
    table = f"docs-{uuid4().hex[:8]}"
    # Not the moment of the page: what has expired by now an engine may delete.
    clock = FakeClock(SystemClock().now() // 1_000_000)
    await spend(await open_store(engine.store_url(table, create="true")), clock)
    async with open_store(engine.store_url(table)) as store:
        assert not await store.events.put(events(clock))
        assert await store.directory.replace(None, PLAN, now=clock.now())
        assert await store.directory.replace(None, USER, now=clock.now())
    found = engine.call("Scan", {"TableName": table, "ConsistentRead": True})["Items"]
    shown = list((await samples(clock)).values())
    # The event with an id of its own has an item too; the page shows only its note.
    (other,) = [item for item in found if item["tp"] == {"S": "ulog"} and item["SK"]["S"].endswith("#order-17")]
    assert sorted(map(plain, found), key=repr) == sorted(map(plain, [*shown, other]), key=repr)


def plain(item: dict[str, Any]) -> dict[str, Any]:
    return dict(sorted(item.items()))


def test_every_sample_is_on_the_page() -> None:
    assert {f"item-{name}" for name in NAMES} == {mark for mark in MARK.findall(PAGE) if mark.startswith("item-")}


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_is_json_with_its_key(name: str) -> None:
    item = json.loads(sample_block(name).removeprefix("```json").removesuffix("```"))
    assert {"PK", "SK", "tp"} <= item.keys()


def test_the_request_has_the_conditions_that_the_page_explains() -> None:
    request = request_block()
    assert '":v3": {"N": "15"}' in request
    assert "attribute_not_exists(#f2) OR #f2 <= :v3" in request
