"""Environment variables: how they are written, whom they mean, and what is not ours."""

from __future__ import annotations

import pytest

from ratelimit.config import Config, load_config
from ratelimit.errors import ConfigError
from ratelimit.policy import Policy


def load(**env: str) -> Config:
    return load_config(env={f"RATELIMIT_{name}": value for name, value in env.items()})


def problem(**env: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(**env)
    return str(caught.value)


def test_every_kind_of_value() -> None:
    config = load(
        STORE="memory://?max_keys=10",
        DEADLINE="1",
        HEADERS="none",
        USER_FROM="header:x-api-key, address",
        TRUSTED_PROXIES="2",
        IPV6_PREFIX="56",
        EXEMPT="GET /health, /static/**",
    )
    assert config == Config(
        store="memory://?max_keys=10",
        deadline=1.0,
        headers="none",
        user_from=("header:x-api-key", "address"),
        trusted_proxies=2,
        ipv6_prefix=56,
        exempt=("GET /health", "/static/**"),
    )
    assert load(TRUSTED_PROXIES="10.0.0.0/8,::1/128").trusted_proxies == ("10.0.0.0/8", "::1/128")


def test_a_comma_between_methods_does_not_part_patterns() -> None:
    assert load(EXEMPT="GET,HEAD /health, /a , POST,PUT /b").exempt == ("GET,HEAD /health", "/a", "POST,PUT /b")


def test_a_policy_made_of_variables_alone() -> None:
    config = load(
        POLICIES__HINT__QUOTAS="100/hour, 1000/day",
        POLICIES__HINT__MATCH="POST /hints",
        POLICIES__HINT__COST="2",
        POLICIES__HINT__ON_UNAVAILABLE="deny",
        POLICIES__HINT__USER_FROM="user",
    )
    wanted = Policy("hint", "100/hour; 1000/day", match="POST /hints", cost=2, on_unavailable="deny", user_from="user")
    assert config.policies == (wanted,)


@pytest.mark.parametrize("name", ["run-code", "run_code", "Run-Code"])
def test_case_and_dashes_of_a_policy_do_not_matter(name: str) -> None:
    config = load_config(env={"RATELIMIT_POLICIES__RUN_CODE__QUOTAS": "9/day"}, policies=[Policy(name, "5/day")])
    assert config.policies == (Policy(name, "9/day"),)


def test_a_name_that_could_mean_two_policies() -> None:
    policies = [Policy("a-b", "5/day"), Policy("a_b", "5/day")]
    with pytest.raises(ConfigError, match="could mean the policy 'a-b' or 'a_b'"):
        load_config(env={"RATELIMIT_POLICIES__A_B__QUOTAS": "9/day"}, policies=policies)


def test_an_empty_variable_is_not_set() -> None:
    assert load(STORE="", DEADLINE=" ", POLICIES__HINT__QUOTAS="", CONFIG="") == Config()


def test_what_is_not_ours_is_left_alone() -> None:
    env = {"RATELIMIT_TEST_ENDPOINT": "x", "RATELIMIT_FAST_LANE": "0", "OTHER": "x", "RATELIMITER": "x"}
    assert load_config(env=env) == Config()


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [
        ("STOER", "RATELIMIT_STORE"),
        ("DEADLIN", "RATELIMIT_DEADLINE"),
        ("CONFG", "RATELIMIT_CONFIG"),
        ("HEADER", "RATELIMIT_HEADERS"),
        ("STORE_PORT", "RATELIMIT_STORE"),
        ("TRUSTED_PROXY", "RATELIMIT_TRUSTED_PROXIES"),
    ],
)
def test_an_unknown_variable_is_warned_of_with_the_nearest(
    variable: str, nearest: str, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        assert load(**{variable: "8080"}) == Config()
    told = f"RATELIMIT_{variable}: unknown environment variable; did you mean {nearest}?"
    assert [record.getMessage() for record in caplog.records] == [told]


def test_one_that_is_near_to_none_is_warned_of_as_well(caplog: pytest.LogCaptureFixture) -> None:
    assert load(XYZ_QUUX_BAZ="8080") == Config()
    assert "RATELIMIT_XYZ_QUUX_BAZ: unknown environment variable; there are: RATELIMIT_CONFIG" in caplog.text


# What Kubernetes tells every container of a namespace that has a Service called `ratelimit`, and one `ratelimit-store`.
KUBERNETES = {
    "RATELIMIT_PORT": "tcp://10.96.12.7:8080",
    "RATELIMIT_PORT_8080_TCP": "tcp://10.96.12.7:8080",
    "RATELIMIT_PORT_8080_TCP_ADDR": "10.96.12.7",
    "RATELIMIT_PORT_8080_TCP_PORT": "8080",
    "RATELIMIT_PORT_8080_TCP_PROTO": "tcp",
    "RATELIMIT_PORT_53_UDP": "udp://10.96.12.7:53",
    "RATELIMIT_SERVICE_HOST": "10.96.12.7",
    "RATELIMIT_SERVICE_PORT": "8080",
    "RATELIMIT_SERVICE_PORT_HTTP": "8080",
    "RATELIMIT_STORE_PORT": "tcp://10.96.12.8:443",
    "RATELIMIT_STORE_PORT_443_TCP": "tcp://10.96.12.8:443",
    "RATELIMIT_STORE_SERVICE_HOST": "10.96.12.8",
    "RATELIMIT_STORE_SERVICE_PORT_HTTPS": "443",
}
OTHERS = {
    "RATELIMIT_STORAGE_URL": "redis://127.0.0.1",
    "RATELIMIT_STORAGE_URI": "redis://127.0.0.1",
    "RATELIMIT_STORAGE_OPTIONS": "{}",
    "RATELIMIT_DEFAULT": "5/day",
    "RATELIMIT_STRATEGY": "moving-window",
    "RATELIMIT_HEADERS_ENABLED": "True",
    "RATELIMIT_KEY_PREFIX": "x",
    "RATELIMIT_ENABLE": "True",
    "RATELIMIT_USE_CACHE": "default",
}


@pytest.mark.parametrize("env", [KUBERNETES, OTHERS])
def test_known_variables_of_others_pass(env: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    assert load_config(env=env) == Config()
    assert not caplog.records


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [
        ("POLICIES__HINT__QUOTA", "RATELIMIT_POLICIES__HINT__QUOTAS"),
        ("POLICY__HINT__QUOTAS", "RATELIMIT_POLICIES__HINT__QUOTAS"),
    ],
)
def test_a_policys_unknown_variable_is_an_error(variable: str, nearest: str) -> None:
    told = problem(**{variable: "x"})
    assert told == f"RATELIMIT_{variable}: unknown environment variable; did you mean {nearest}?"


@pytest.mark.parametrize("variable", ["POLICIES", "POLICIES__HINT", "POLICIES____QUOTAS", "POLICIES__A__B__C"])
def test_a_policy_variable_without_its_parts(variable: str) -> None:
    assert "as in RATELIMIT_POLICIES__HINT__QUOTAS=5/day" in problem(**{variable: "5/day"})


def test_a_bad_value_names_its_variable() -> None:
    assert problem(DEADLINE="soon") == (
        "deadline: expected seconds from 0.001 to 60, such as 0.25, not 'soon' (set by RATELIMIT_DEADLINE)"
    )
    assert problem(POLICIES__HINT__QUOTAS="5/fortnight").endswith("(set by RATELIMIT_POLICIES__HINT__QUOTAS)")
