"""`docs/migration.md` is true: its settings are settings, and its commands run in their order."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from uuid import uuid4

import pytest

from ratelimit.factory import build_store, load_checked
from tests.cli.command import Command
from tests.cli.command import ratelimit as ratelimit
from tests.docs.pages import ROOT
from tests.engines import Engine
from tests.migrate.sources import to_sqlite
from tests.migrate.world import World

PAGE = ROOT / "docs" / "migration.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", [block for language, block in BLOCKS if language == "toml"])
def test_the_settings_are_settings(block: str) -> None:
    assert build_store(load_checked(env={}, **tomllib.loads(block))) is not None


def test_the_commands_run(ratelimit: Command, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATELIMIT_STORE", engine.store_url(f"docs-{uuid4().hex[:8]}"))
    monkeypatch.chdir(tmp_path)
    to_sqlite(World(users=3, rows=9), tmp_path / "app.db")
    assert ratelimit("table", "create").status == 0
    lines = [line for language, block in BLOCKS if language == "sh" for line in block.splitlines()]
    assert len(lines) == 3
    for line in lines:
        command, *words = shlex.split(line)
        assert command == "ratelimit"
        status, out, err = ratelimit(*words)
        assert status == 0, err
        assert out, line
    assert {one.suffix.partition("-")[0] for one in tmp_path.iterdir()} == {".db", ".backup", ".run"}


def test_every_option_that_it_names_is_there(ratelimit: Command) -> None:
    helps = ratelimit("migrate", "run", "--help").out + ratelimit("migrate", "verify", "--help").out
    helps += ratelimit("demo", "seed", "--help").out
    named = set(re.findall(r"`(--[a-z-]+)", PAGE.read_text(encoding="utf-8"))) - {"--store", "--config"}
    assert len(named) >= 8
    assert {option for option in named if option not in helps} == set()
