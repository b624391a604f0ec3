"""`docs/usage.md` is true: its commands run, in their order, on a table with a little use in it."""

from __future__ import annotations

import asyncio
import re
import shlex
from pathlib import Path
from uuid import uuid4

import pytest

from ratelimit import Limiter, Policy, UsageLog, open_store
from tests.cli.command import Command
from tests.cli.command import ratelimit as ratelimit
from tests.docs.pages import ROOT
from tests.engines import Engine

PAGE = ROOT / "docs" / "usage.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_commands_run(ratelimit: Command, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = engine.store_url(f"docs-{uuid4().hex[:8]}", create="true")
    asyncio.run(_use(url))
    monkeypatch.setenv("RATELIMIT_STORE", url)
    monkeypatch.setenv("RATELIMIT_POLICIES__HINT__QUOTAS", "5/day")
    monkeypatch.chdir(tmp_path)
    lines = [line for language, block in BLOCKS if language == "sh" for line in block.splitlines()]
    assert len(lines) == 16
    for line in lines:
        command, *words = shlex.split(line)
        assert command == "ratelimit"
        status, out, err = ratelimit(*words)
        assert (status, err) == (0, ""), line
        assert out, line
    assert sorted(one.name for one in tmp_path.iterdir()) == [
        "alice.csv",
        "events.csv",
        "events.jsonl",
        "events.parquet",
    ]


async def _use(url: str) -> None:
    async with open_store(url) as store, UsageLog(store) as usage:
        await Limiter(store, [Policy("hint", "5/day")]).check("alice", "hint")
        for allowed in (True, False):
            await usage.record("alice", "hint", allowed=allowed)
