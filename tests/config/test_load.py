"""What a configuration comes to: the file, keyword arguments over it, environment variables over both."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from ratelimit.config import SETTINGS, Config, SettingArgs, load_config
from ratelimit.policy import POLICY_SETTINGS, Policy
from ratelimit.quota import UNLIMITED, Quota

FULL = """
store = "dynamodb://my-table?region=eu-west-1"
deadline = 0.5
denial_cache = 0
headers = "both"
user_from = ["user", "header:x-api-key", "address"]
trusted_proxies = ["10.0.0.0/8"]
exempt = ["GET /health"]

[policies.hint]
quotas = "5/day"
match = ["POST /hints"]
on_unavailable = "deny"
cost = 2
count = "success"

[policies.search]
quotas = [{ limit = 10, window = "second", burst = 20 }, "1000/day"]
algorithm = "gcra"
mode = "shadow"
user_from = "address"
exempt = "GET /search/help"

[policies.admin]
quotas = "unlimited"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "ratelimit.toml"
    path.write_text(text, encoding="utf-8")
    return path


def load(path: Path, **env: str) -> Config:
    return load_config(path, env=env)


def test_nothing_configured_is_the_embedded_store_and_no_policy() -> None:
    assert load_config(env={}) == Config()
    assert (Config().store, Config().denial_cache, Config().policies) == ("memory://", 1.0, ())


def test_a_full_file(tmp_path: Path) -> None:
    assert load(write(tmp_path, FULL)) == Config(
        store="dynamodb://my-table?region=eu-west-1",
        deadline=0.5,
        denial_cache=0.0,
        headers="both",
        user_from=("user", "header:x-api-key", "address"),
        trusted_proxies=("10.0.0.0/8",),
        exempt=("GET /health",),
        policies=(
            Policy("hint", "5/day", match="POST /hints", on_unavailable="deny", cost=2, count="success"),
            Policy(
                "search",
                [Quota(10, "second", 20), "1000/day"],
                algorithm="gcra",
                mode="shadow",
                user_from="address",
                exempt="GET /search/help",
            ),
            Policy("admin", UNLIMITED),
        ),
    )


@pytest.mark.parametrize("quotas", ['"5/day"', '["5/day"]', '{ limit = 5, window = "day" }'])
def test_a_quota_may_be_written_in_three_ways(tmp_path: Path, quotas: str) -> None:
    (policy,) = load(write(tmp_path, f"[policies.hint]\nquotas = {quotas}")).policies
    assert policy.quotas == (Quota(5, "day"),)


def test_keyword_arguments_say_the_same_as_a_file(tmp_path: Path) -> None:
    written = load(write(tmp_path, 'deadline = 1\n[policies.hint]\nquotas = "5/day"\ncost = 2'))
    as_tables = load_config(env={}, deadline=1, policies={"hint": {"quotas": "5/day", "cost": 2}})
    as_values = load_config(env={}, deadline=1, policies=[Policy("hint", "5/day", cost=2)])
    assert written == as_tables == as_values


def test_functions_may_be_given_where_a_file_could_not() -> None:
    config = load_config(env={}, user_from=[str, "address"], policies={"hint": {"quotas": "5/day", "cost": len}})
    assert config.user_from == (str, "address")
    assert config.policies[0].cost is len


def test_environment_over_keywords_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, 'deadline = 0.1\nheaders = "both"\nstore = "memory://?max_keys=1"')
    config = load_config(path, env={"RATELIMIT_DEADLINE": "0.3"}, deadline=0.2, headers="legacy")
    assert (config.deadline, config.headers, config.store) == (0.3, "legacy", "memory://?max_keys=1")


def test_layers_meet_inside_a_policy(tmp_path: Path) -> None:
    path = write(tmp_path, '[policies.hint]\nquotas = "5/day"\ncost = 2\nmatch = ["POST /hints"]')
    env = {"RATELIMIT_POLICIES__HINT__QUOTAS": "10/day"}
    (policy,) = load_config(path, env=env, policies={"hint": {"cost": 3}}).policies
    assert policy == Policy("hint", "10/day", cost=3, match="POST /hints")


def test_the_environment_changes_one_setting_of_a_policy_value() -> None:
    given = Policy("hint", UNLIMITED, cost=3, match="POST /hints")
    (policy,) = load_config(env={"RATELIMIT_POLICIES__HINT__MODE": "shadow"}, policies=[given]).policies
    assert policy == Policy("hint", UNLIMITED, cost=3, match="POST /hints", mode="shadow")


def test_the_file_may_be_named_in_the_environment(tmp_path: Path) -> None:
    path = write(tmp_path, "deadline = 0.1")
    assert load_config(env={"RATELIMIT_CONFIG": str(path)}).deadline == 0.1
    assert load_config(write(tmp_path, "deadline = 0.2"), env={"RATELIMIT_CONFIG": "elsewhere"}).deadline == 0.2


def test_the_process_environment_is_read_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATELIMIT_DEADLINE", "0.125")
    assert load_config().deadline == 0.125


def test_every_setting_can_be_set_everywhere() -> None:
    assert {*SETTINGS, "policies"} == {field.name for field in fields(Config)} == set(SettingArgs.__annotations__)
    assert {*POLICY_SETTINGS, "name"} == {field.name for field in fields(Policy)}


def test_a_config_shows_no_credentials() -> None:
    assert "s3cret" not in repr(Config(store="dynamodb://t?endpoint=http://me:s3cret@host"))
