"""CONTRIBUTING.md is true to the tree: its rooms, and the way of a request."""

from __future__ import annotations

import re
from functools import reduce
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_every_room_is_in_the_table() -> None:
    rooms = {path.name for path in (ROOT / "ratelimit").iterdir() if not path.name.startswith(("_", "."))} - {
        "py.typed"
    }
    named = {
        name.rstrip("/")
        for row in re.findall(r"(?m)^\| (`[^|]*`) \|", section("Rooms"))
        for name in re.findall(r"[\w./]+", row)
    }
    assert named == rooms


def test_the_way_of_a_request_passes_functions_that_there_are() -> None:
    steps = re.findall(r"(?m)^\d+\. `(\S+)\.py` `(\S+)` ", section("The way of a request"))
    assert len(steps) > 20
    for file, name in steps:
        module = import_module("ratelimit." + file.replace("/", "."))
        assert callable(reduce(getattr, name.split("."), module)), name
