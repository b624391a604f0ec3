"""`ratelimit demo seed`, and the make targets that call the commands on a local table."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from uuid import uuid4

import pytest

from ratelimit.dynamodb import parse_url
from tests.cli.command import Command
from tests.cli.command import ratelimit as ratelimit
from tests.engines import Engine
from tests.migrate.sources import to_sqlite
from tests.migrate.world import World

ROOT = Path(__file__).parents[2]


def test_seed_fills_a_table_and_nothing_twice(ratelimit: Command, engine: Engine) -> None:
    url = engine.store_url(f"demo-{uuid4().hex[:8]}")
    assert ratelimit("table", "create", "--store", url).status == 0
    first = ratelimit("demo", "seed", "--users", "3", "--days", "2", "--store", url, "--json")
    assert first.status == 0, first.err
    written = {entity: each["written"] for entity, each in first.json.items()}
    assert (written["plans"], written["users"]) == (3, 3)
    again = ratelimit("demo", "seed", "--users", "3", "--days", "2", "--store", url, "--json")
    assert again.json["users"] == {"written": 0, "there": 3}
    assert again.json["events"]["there"] >= written["events"]
    shown = ratelimit("user", "show", "demo-1", "--store", url)
    assert (shown.status, "admin" in shown.out) == (0, True)


def test_seed_is_for_development(ratelimit: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL_DYNAMODB", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    result = ratelimit("demo", "seed", "--store", "dynamodb://limits?region=eu-west-1")
    assert (result.status, "--on-aws" in result.err) == (2, True)
    assert ratelimit("demo", "seed", "--store", "memory://").status == 2


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_the_make_targets_call_the_commands(
    ratelimit: Command, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = f"make-{uuid4().hex[:8]}"
    endpoint = parse_url(engine.store_url(table)).endpoint
    source = to_sqlite(World(users=3, rows=9), tmp_path / "app.db")
    monkeypatch.chdir(tmp_path)
    for target in (
        "init", "seed", "migrate-dry-run", "migrate-plans", "migrate-users", "migrate-events", "migrate-counters",
        "migrate", "migrate-verify",
    ):  # fmt: skip
        more = "--more-is-fine" if target == "migrate-verify" else ""
        words = [f"dynamodb-{target}", f"SOURCE={source}", f"TABLE={table}", f"ENDPOINT={endpoint}", f"ARGS={more}"]
        planned = subprocess.run(
            ["make", "-n", "-C", ROOT, "PYTHON=python3", *words], capture_output=True, text=True, check=True
        ).stdout
        lines = [line for line in planned.splitlines() if "bin/ratelimit" in line and "pip" not in line]
        assert lines, planned
        for line in lines:
            settings, _, command = line.partition(" .venv")
            for setting in shlex.split(settings):
                monkeypatch.setenv(*setting.split("=", 1))
            result = ratelimit(*shlex.split(command)[1:])
            assert result.status == 0, (target, result.err)


@pytest.mark.process
@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_a_target_says_what_it_needs() -> None:
    env = {**os.environ, "SOURCE": ""}
    planned = subprocess.run(["make", "-n", "-C", ROOT, "dynamodb-migrate"], capture_output=True, text=True, env=env)
    assert "make dynamodb-migrate SOURCE=sqlite:///app.db" in planned.stdout
