"""`ratelimit config check|show`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ratelimit.config import load_config
from tests.cli.command import Command

TEXT = """
store = "dynamodb://limits?region=eu-west-1"
user_from = ["header:x-api-key", "address"]
trusted_proxies = ["10.0.0.0/8"]
deadline = 0.25

[policies.hint]
quotas = ["5/day", "2/hour"]
match = ["POST /hints/{id}"]
cost = 2

[policies."a b"]
quotas = [{ limit = 10, window = "second", burst = 20 }]
algorithm = "gcra"

[policies.admin]
quotas = "unlimited"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "ratelimit.toml"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_check_shows_what_it_understood(ratelimit: Command, file: Path) -> None:
    status, out, err = ratelimit("config", "check", str(file))
    assert (status, err) == (0, "")
    assert out.startswith(f"{file}: ok\n")
    for text in ("5/day, 2/hour", "POST /hints/{id}", "10/second burst 20", "unlimited", "(asked by name)", "1048576"):
        assert text in out


def test_check_shows_what_a_policy_is_decided_with(ratelimit: Command, file: Path) -> None:
    file.write_text(
        '[policies.api]\nquotas = "5/day"\nmatch = "/api"\ntogether = "org"\n[policies.org]\nquotas = "9/day"'
    )
    assert re.search(r"org +9/day .* \(with api\)", ratelimit("config", "check", str(file)).out)


def test_check_in_json(ratelimit: Command, file: Path) -> None:
    answer = ratelimit("config", "check", str(file), "--json").json
    assert answer["ok"] is True
    assert answer["policies"]["hint"]["quotas"] == ["5/day", "2/hour"]


def test_check_reports_what_only_the_parts_know(ratelimit: Command, file: Path) -> None:
    file.write_text(
        'store = "dynamo://limits"\nuser_from = ["cooky:sid"]\ntrusted_proxies = ["10.0.0.0/99"]\nexempt = ["health"]\n'
        'deadline = 0\n[policies.hint]\nquotas = "5/day"\nmatch = ["PSOT /hints"]\n'
        '[policies.run]\nquotas = "5/day"\nuser_from = ["header:"]',
        encoding="utf-8",
    )
    status, out, err = ratelimit("config", "check", str(file))
    assert (status, out) == (2, "")
    lines = err.splitlines()
    assert lines[0] == "error: 7 settings cannot be used:"
    assert {line.split(": ")[0].strip() for line in lines[1:]} == {
        "deadline",
        "store",
        "user_from[0]",
        "trusted_proxies[0]",
        "exempt[0]",
        "policies.hint.match[0]",
        "policies.run.user_from[0]",
    }
    assert all(line.endswith(f"(in {file})") for line in lines[1:])


def test_check_reads_the_environment_too(
    ratelimit: Command, file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RATELIMIT_POLICIES__HINT__QUOTAS", "7/day")
    assert "7/day" in ratelimit("config", "check", str(file)).out
    monkeypatch.setenv("RATELIMIT_STOR", "memory://")
    assert ratelimit("config", "check", str(file)).status == 0
    assert "RATELIMIT_STOR: unknown environment variable; did you mean RATELIMIT_STORE?" in caplog.text


def test_check_shows_the_limits_of_envoys_files_or_what_is_wrong_with_them(
    ratelimit: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rules = tmp_path / "edge.yaml"
    rules.write_text("domain: edge\ndescriptors: [{key: user, rate_limit: {unit: day, requests_per_unit: 2}}]")
    monkeypatch.setenv("RATELIMIT_ENVOY_CONFIG", str(tmp_path))
    status, out, _ = ratelimit("config", "check")
    assert (status, "edge.user" in out, "2/day" in out) == (0, True, True)
    rules.write_text("domain: edge\ndescriptors: [{kye: user}]")
    status, _, err = ratelimit("config", "check")
    assert status == 2
    assert f"envoy_config: {rules}:2: unknown key 'kye'; did you mean key? (set by RATELIMIT_ENVOY_CONFIG)" in err


def test_a_policy_and_a_limit_of_one_name(ratelimit: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "edge.yaml").write_text(
        "domain: edge\ndescriptors: [{key: user, rate_limit: {unit: day, requests_per_unit: 2}}]"
    )
    (tmp_path / "ratelimit.toml").write_text("[policies.'edge.user']\nquotas = '5/day'")
    monkeypatch.setenv("RATELIMIT_ENVOY_CONFIG", str(tmp_path))
    status, _, err = ratelimit("config", "check", str(tmp_path / "ratelimit.toml"))
    assert (status, "a second policy named 'edge.user'" in err) == (2, True), err


def test_check_without_a_file(ratelimit: Command) -> None:
    status, out, _ = ratelimit("config", "check")
    assert status == 0
    assert "no policies: nothing is limited" in out


def test_show_prints_toml_that_loads_to_the_same(ratelimit: Command, file: Path, tmp_path: Path) -> None:
    status, out, err = ratelimit("config", "show", "--config", str(file))
    assert (status, err) == (0, "")
    again = tmp_path / "again.toml"
    again.write_text(out, encoding="utf-8")
    assert load_config(again, env={}) == load_config(file, env={})
