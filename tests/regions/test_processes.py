"""`home` over three real engines, each a region, with a process in each: exact, and counted at home alone."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ratelimit.dynamodb import DynamoDBStore, Settings
from ratelimit.regions.regions import home_of
from ratelimit.testing.engines import Engine, start
from tests.cli.command import Command
from tests.cli.command import ratelimit as ratelimit
from tests.docs.pages import command_lines
from tests.regions.replicator import REGIONS

pytestmark = [pytest.mark.process, pytest.mark.slow]

LIMIT, USERS = 20, tuple(f"user-{number}" for number in range(9))

PROCESS = f"""
import asyncio, json, sys
from ratelimit.factory import build_limiter, load_checked

async def main():
    limiter = build_limiter(load_checked("ratelimit.toml"))
    async with limiter:
        for user in {USERS}:  # the crossings' connections are made
            await limiter.peek(user, "hint")
        print("ready", flush=True)
        sys.stdin.readline()
        allowed = {{}}
        for user in {USERS}:
            decisions = await asyncio.gather(*(limiter.check(user, "hint") for _ in range({LIMIT})))
            assert not any(decision.reason == "unavailable" for decision in decisions)
            allowed[user] = sum(decision.allowed for decision in decisions)
        totals = {{user: sum((await limiter.totals(user))["hint"].values()) for user in {USERS}}}
    print(json.dumps([allowed, totals]))

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def engines() -> Iterator[dict[str, Engine]]:
    with ExitStack() as stack:
        yield {region: stack.enter_context(start("ministack")) for region in REGIONS}


async def counted_in(settings: Settings) -> set[str]:
    async with DynamoDBStore(settings) as store:
        return {key.user for key, _ in (await store.scans.records()).entries}


def configure(folder: Path, engines: dict[str, Engine], regions: tuple[str, ...], lease: str = "") -> Path:
    path = folder / "ratelimit.toml"
    endpoints = ", ".join(f'{region} = "{engines[region].endpoint}"' for region in regions)
    path.write_text(
        f'store = "dynamodb://limits?create=true"\ndeadline = 60\n'
        f'[regions]\nmode = "home"\nall = {json.dumps(regions)}\nendpoints = {{ {endpoints} }}\n'
        f'[policies.hint]\nquotas = "{LIMIT}/day"\non_unavailable = "deny"\n{lease}\n'
    )
    return path


def ask_in_each_region(folder: Path) -> list[Any]:
    """What a process in each has answered, all at the same time."""
    runs = []
    for region in REGIONS:  # one after the other: each makes its table where it is not there yet
        command = [sys.executable, "-c", PROCESS]
        env = {"PYTHONPATH": ":".join(sys.path), "AWS_REGION": region}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        runs.append(subprocess.Popen(command, cwd=folder, env=env, text=True, **pipes))  # type: ignore[call-overload]
        assert runs[-1].stdout.readline() == "ready\n"
    for run in runs:
        run.stdin.write("go\n")
        run.stdin.flush()
    return [json.loads(run.communicate(timeout=240)[0]) for run in runs]


def test_three_processes_in_three_regions_admit_exactly_the_quota(
    engines: dict[str, Engine], tmp_path: Path, ratelimit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(tmp_path, engines, REGIONS)
    answers = ask_in_each_region(tmp_path)
    allowed: Counter[str] = Counter()
    for admitted, _ in answers:
        allowed.update(admitted)
    assert allowed == dict.fromkeys(USERS, LIMIT)
    assert answers[-1][1] == dict.fromkeys(USERS, LIMIT)
    for region in REGIONS:
        counted = asyncio.run(counted_in(Settings(table="limits", region=region, endpoint=engines[region].endpoint)))
        assert counted == {user for user in USERS if home_of(user, REGIONS) == region}

    monkeypatch.setenv("AWS_REGION", REGIONS[0])
    config = str(tmp_path / "ratelimit.toml")
    whole = f"mode = 'home' over {','.join(REGIONS)}"
    assert ratelimit("table", "regions", "--config", config).out == f"limits: {whole}; configured is {whole}\n"
    configure(tmp_path, engines, REGIONS[:2])
    less = f"mode = 'home' over {','.join(REGIONS[:2])}"
    refused = ratelimit("check", "alice", "hint", "--config", config)
    assert refused.status == 3
    assert f"is counted by {whole}, and this process would by {less}" in " ".join(refused.err.split())
    found = ratelimit("table", "regions", "--config", config)
    assert (found.status, " ".join(found.out.split())) == (1, f"limits: {whole}; configured is {less}")
    found = ratelimit("table", "regions", "--json", "--config", config)
    assert (found.status, found.json) == (1, {"name": "limits", "recorded": whole, "configured": less, "away": []})
    (change,) = command_lines("docs/regions.md", fenced_only=True)
    assert ratelimit(*change.words[1:], "--config", config).status == 0
    assert ratelimit("check", "alice", "hint", "--config", config).status == 3, "the other region has another record"
    monkeypatch.setenv("AWS_REGION", REGIONS[1])
    assert ratelimit("table", "regions", "--change", "--config", config).status == 0
    assert ratelimit("check", "alice", "hint", "--config", config).status == 0
