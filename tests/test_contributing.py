"""CONTRIBUTING.md is true to the tree: its rooms, and the way of a request."""

from __future__ import annotations

import re
import sys
from functools import reduce
from importlib import import_module
from pathlib import Path
from types import CodeType, FrameType
from typing import Any
from uuid import uuid4

import pytest

from ratelimit import Policy, RateLimitMiddleware
from tests.engines import Engine
from tests.http.apps import call, hello, scope_of

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_every_room_is_in_the_table() -> None:
    package = ROOT / "ratelimit"  # where a room that is gone may have left what was compiled of it
    files = (path.relative_to(package).parts[0] for path in package.rglob("*.py"))
    rooms = {name for name in files if not name.startswith("_")}
    named = {
        name.rstrip("/")
        for row in re.findall(r"(?m)^\| (`[^|]*`) \|", section("Rooms"))
        for name in re.findall(r"[\w./]+", row)
    }
    assert named == rooms


@pytest.mark.engine
async def test_the_way_of_a_request_passes_these_functions(engine: Engine) -> None:
    entered: set[CodeType] = set()

    def enter(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(str(ROOT / "ratelimit")):
            entered.add(frame.f_code)

    hint = Policy("hint", "5000/day", match="POST /hints")
    store = engine.store_url(f"way-{uuid4().hex[:8]}", create="true")
    app = RateLimitMiddleware.from_config(hello, policies=[hint], store=store)
    async with app.limiter:
        for _ in range(3):
            await call(app, scope_of())
        sys.setprofile(enter)
        try:
            await call(app, scope_of())
        finally:
            sys.setprofile(None)
    text = section("The way of a request")
    steps = re.findall(r"(?m)^\d+\. `(\S+)\.py` `(\S+)` ", text)
    assert len(steps) > 20
    for file, name in steps:
        module: Any = import_module("ratelimit." + file.replace("/", "."))
        assert reduce(getattr, name.split("."), module).__code__ in entered, name
    assert f"in {len({code.co_filename for code in entered})} files" in text
