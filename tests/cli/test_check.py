"""`ratelimit check`: the answer, in words, in JSON and as an exit status."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TypeAlias
from uuid import uuid4

import pytest

from ratelimit.directory import DEFAULT_DEADLINE
from ratelimit.dynamodb.directory import entry_key, entry_values
from ratelimit.store.directory import Plan, User, name_of
from tests.cli.command import Command
from tests.engines import Engine
from tests.faults import FaultServer, error, slow

# Nothing listens there.
NOWHERE = "dynamodb://limits?region=eu-west-1&endpoint=http://127.0.0.1:9"


def test_allowed(ratelimit: Command) -> None:
    status, out, err = ratelimit("check", "alice", "hint", "--quota", "5/day")
    assert status == 0
    assert out.startswith("allowed: alice hint\n")
    assert "5/day" in out
    assert err == "note: memory:// counts in this process only, so every run starts afresh\n"


def test_refused(ratelimit: Command) -> None:
    status, out, _ = ratelimit("check", "alice", "hint", "--quota", "5/day", "--cost", "6")
    assert status == 1
    assert out.startswith("refused: alice hint (cost 6); never: the cost exceeds a quota\n")


def test_a_cost_that_can_never_pass_still_shows_how_the_quotas_stand(ratelimit: Command, engine: Engine) -> None:
    url = engine.store_url(f"cli-{uuid4().hex[:8]}", create="true")
    line = ("check", "alice", "hint", "--quota", "5/day", "--store", url)
    assert ratelimit(*line, "--cost", "4").status == 0
    refused = ratelimit(*line, "--cost", "6", "--json")
    assert (refused.status, refused.json["reason"], refused.json["retry_after"]) == (1, "too_large", None)
    assert [(each["used"], each["remaining"]) for each in refused.json["quotas"]] == [(4, 1)]


def test_several_quotas_and_json(ratelimit: Command) -> None:
    result = ratelimit("check", "alice", "hint", "--quota", "5/day", "--quota", "2/hour", "--cost", "2", "--json")
    assert result.status == 0
    answer = result.json
    assert (answer["allowed"], answer["cost"], answer["reason"], answer["retry_after"]) == (True, 2, None, 0)
    assert [(each["quota"], each["used"], each["remaining"]) for each in answer["quotas"]] == [
        ("5/day", 2, 3),
        ("2/hour", 2, 0),
    ]


def test_peek_spends_nothing(ratelimit: Command) -> None:
    result = ratelimit("check", "alice", "hint", "--quota", "5/day", "--peek", "--json")
    assert result.json["quotas"][0]["used"] == 0
    assert ratelimit("check", "alice", "hint", "--quota", "5/day", "--peek").out.startswith("would be allowed")


def test_a_burst_goes_with_its_algorithm(ratelimit: Command, tmp_path: Path) -> None:
    """As an example of `--help` has it."""
    config = tmp_path / "ratelimit.toml"
    config.write_text('[policies.known]\nquotas = "5/day"\n', encoding="utf-8")
    for action, *more in (("search",), ("known", "--config", str(config))):
        options = ("--quota", "10/second burst 20", "--algorithm", "gcra", "--json", *more)
        status, out, _ = ratelimit("check", "alice", action, *options)
        assert (status, json.loads(out)["quotas"][0]["quota"]) == (0, "10/second burst 20")


def test_unlimited(ratelimit: Command) -> None:
    status, out, _ = ratelimit("check", "alice", "hint", "--quota", "unlimited")
    assert (status, out) == (0, "allowed: alice hint\nno limit\n")


def test_a_configured_policy(ratelimit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ratelimit.toml"
    path.write_text('[policies.hint]\nquotas = "1/day"\nmode = "shadow"\nlease = 10', encoding="utf-8")
    assert ratelimit("check", "alice", "hint", "--config", str(path), "--json").json["quotas"][0]["used"] == 1
    monkeypatch.setenv("RATELIMIT_CONFIG", str(path))
    status, out, _ = ratelimit("check", "alice", "hint", "--cost", "2")
    assert status == 0
    assert "shadow mode, and would refuse this otherwise" in out
    assert ratelimit("check", "alice", "hint", "--quota", "3/day", "--json").json["quotas"][0]["limit"] == 3


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "no policy is named 'hint' (none is configured); add --quota 5/day, or --config FILE"),
        (("--quota", "5/fortnight"), "--quota: unknown unit 'fortnight'; use one of second"),
        (("--quota", "5/day", "--algorithm", "leaky"), "--algorithm: unknown value 'leaky'; use one of"),
        (("--quota", "5/day", "--cost", "0"), "cost must be a whole number of at least 1, not 0"),
        (("--quota", "5/day", "--store", "redis://x"), "store: unknown scheme redis://; there are: memory://"),
        (("--quota", "5/day", "--config", "missing.toml"), "missing.toml: no such file"),
    ],
)
def test_bad_input(ratelimit: Command, options: tuple[str, ...], told: str) -> None:
    status, out, err = ratelimit("check", "alice", "hint", *options)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert told in err


def test_a_user_that_cannot_be_stored(ratelimit: Command) -> None:
    assert ratelimit("check", "", "hint", "--quota", "5/day") == (2, "", "error: the user is empty\n")


Planned: TypeAlias = tuple[FaultServer, tuple[str, ...]]


@pytest.fixture
async def planned(tmp_path: Path) -> AsyncIterator[Planned]:
    """A table in which alice has a plan, and the command line that asks for her by a policy of 100 a day."""
    path = tmp_path / "ratelimit.toml"
    path.write_text('directory = true\n[policies.hint]\nquotas = "100/day"', encoding="utf-8")
    async with FaultServer() as server:
        for entry in (User("alice", plan="free"), Plan("free", {"hint": "2/day"})):
            key = entry_key(type(entry), name_of(entry))
            server.table.items[key["PK"]["S"], key["SK"]["S"]] = entry_values(entry, now=0, version=1)
        url = f"dynamodb://limits?region=eu-west-1&endpoint={server.endpoint}"
        yield server, ("check", "alice", "hint", "--config", str(path), "--store", url, "--json")


async def test_the_plan_holds_also_where_the_table_is_far(ratelimit: Command, planned: Planned) -> None:
    server, line = planned
    server.always(slow(2 * DEFAULT_DEADLINE))
    found = await asyncio.to_thread(ratelimit, *line)
    assert (found.json["quotas"][0]["quota"], found.err) == ("2/day", "")


async def test_a_plan_that_could_not_be_read_is_said(ratelimit: Command, planned: Planned) -> None:
    server, line = planned
    server.then(*[error("AccessDeniedException")] * 2)  # AWS's client is asked again
    found = await asyncio.to_thread(ratelimit, *line)
    assert found.json["quotas"][0]["quota"] == "100/day"
    assert found.err == "note: the user and the plan could not be read: these are the policy's own quotas\n"


async def test_a_quota_that_is_given_goes_over_the_plan(ratelimit: Command, planned: Planned) -> None:
    _, line = planned
    found = await asyncio.to_thread(ratelimit, *line, "--quota", "7/day")
    assert [each["quota"] for each in found.json["quotas"]] == ["7/day"]


@pytest.mark.parametrize("on_unavailable", ["allow", "local", "deny"])
def test_a_store_that_is_down_is_never_an_answer(ratelimit: Command, tmp_path: Path, on_unavailable: str) -> None:
    path = tmp_path / "ratelimit.toml"
    path.write_text(f'[policies.hint]\nquotas = "1/day"\non_unavailable = "{on_unavailable}"', encoding="utf-8")
    status, out, err = ratelimit("check", "alice", "hint", "--config", str(path), "--store", NOWHERE, "--json")
    assert (status, out) == (3, "")
    assert err.startswith("error: cannot reach table 'limits' in eu-west-1 at http://127.0.0.1:9")


def test_on_dynamodb(ratelimit: Command, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATELIMIT_STORE", "memory://")
    url = engine.store_url(f"cli-{uuid4().hex[:8]}", create="true")
    line = ("check", "alice", "hint", "--quota", "2/day", "--store", url)
    assert [ratelimit(*line).status for _ in range(3)] == [0, 0, 1]
    status, out, err = ratelimit(*line)
    assert (status, err) == (1, "")
    assert out.startswith("refused: alice hint; again in ")
