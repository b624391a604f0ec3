"""What a configuration comes to: the file, keyword arguments over it, environment variables over both."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path

import pytest

from ratelimit import UNLIMITED, Config, ConfigError, Policy, Quota, load_config
from ratelimit.config import SETTINGS, SettingArgs
from ratelimit.policy import POLICY_SETTINGS

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


# Environment variables: how they are written, whom they mean, and what is not ours.


def load_with(**env: str) -> Config:
    return load_config(env={f"RATELIMIT_{name}": value for name, value in env.items()})


def problem_in(**env: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_with(**env)
    return str(caught.value)


def test_every_kind_of_value() -> None:
    config = load_with(
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
    assert load_with(TRUSTED_PROXIES="10.0.0.0/8,::1/128").trusted_proxies == ("10.0.0.0/8", "::1/128")


def test_a_comma_between_methods_does_not_part_patterns() -> None:
    assert load_with(EXEMPT="GET,HEAD /health, /a , POST,PUT /b").exempt == ("GET,HEAD /health", "/a", "POST,PUT /b")


def test_a_policy_made_of_variables_alone() -> None:
    config = load_with(
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
    assert load_with(STORE="", DEADLINE=" ", POLICIES__HINT__QUOTAS="", CONFIG="") == Config()


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
        assert load_with(**{variable: "8080"}) == Config()
    told = f"RATELIMIT_{variable}: unknown environment variable; did you mean {nearest}?"
    assert [record.getMessage() for record in caplog.records] == [told]


def test_one_that_is_near_to_none_is_warned_of_as_well(caplog: pytest.LogCaptureFixture) -> None:
    assert load_with(XYZ_QUUX_BAZ="8080") == Config()
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
    told = problem_in(**{variable: "x"})
    assert told == f"RATELIMIT_{variable}: unknown environment variable; did you mean {nearest}?"


@pytest.mark.parametrize("variable", ["POLICIES", "POLICIES__HINT", "POLICIES____QUOTAS", "POLICIES__A__B__C"])
def test_a_policy_variable_without_its_parts(variable: str) -> None:
    assert "as in RATELIMIT_POLICIES__HINT__QUOTAS=5/day" in problem_in(**{variable: "5/day"})


def test_a_bad_value_names_its_variable() -> None:
    assert problem_in(DEADLINE="soon") == (
        "deadline: expected seconds from 0.001 to 60, such as 0.25, not 'soon' (set by RATELIMIT_DEADLINE)"
    )
    assert problem_in(POLICIES__HINT__QUOTAS="5/fortnight").endswith("(set by RATELIMIT_POLICIES__HINT__QUOTAS)")


# Every error names the path, says what would be right, and all of them come at once.


def problem(folder: Path, text: str) -> str:
    """The error of a file, without the place where every error of a file says it is."""
    path = folder / "ratelimit.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path, env={})
    return str(caught.value).replace(f" (in {path})", "").replace(str(path), "FILE")


HINT = '[policies.hint]\nquotas = "5/day"\n'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("polices = 1", "polices: unknown setting; did you mean 'policies'?"),
        ("zzz = 1", "zzz: unknown setting; there are: enabled, store, mirror, regions,"),
        ('quotas = "5/day"', "quotas: belongs to a policy: put it below [policies.NAME]"),
        ("store = 3", "store: expected a URL, as in 'memory://' or"),
        ('store = "my-table"', "store: expected a URL, as in 'memory://' or"),
        ("deadline = 0", "deadline: expected seconds from 0.001 to 60, such as 0.25, not 0"),
        ("deadline = 61", "deadline: expected seconds from 0.001 to 60"),
        ("deadline = nan", "deadline: expected seconds"),
        ("deadline = true", "deadline: expected seconds"),
        ('deadline = "0.25"', "deadline: expected seconds from 0.001 to 60, such as 0.25, not '0.25'"),
        ("denial_cache = -1", "denial_cache: expected seconds from 0 to 60"),
        ('headers = "all"', "headers: unknown value 'all'; use one of 'draft', 'legacy', 'both', 'none'"),
        ("headers = []", "headers: unknown value []"),
        ("user_from = []", "user_from: names nobody; write ['user', 'address'], or leave it out"),
        ("user_from = 3", "user_from: expected text or a list of text, not 3"),
        ('user_from = ["user", 3]', "user_from[1]: expected text or a function, not 3"),
        ("trusted_proxies = -1", "trusted_proxies: expected how many proxies there are"),
        ("ipv6_prefix = 20", "ipv6_prefix: expected 32 to 128 bits, such as 64 or 56, not 20"),
        ("ipv6_prefix = '/56'", "ipv6_prefix: expected 32 to 128 bits"),
        ("ipv6_prefix = true", "ipv6_prefix: expected 32 to 128 bits"),
        ("trusted_proxies = true", "trusted_proxies: expected how many proxies there are"),
        ("trusted_proxies = 1.5", "trusted_proxies: expected how many proxies there are"),
        ("exempt = {}", "exempt: expected text or a list of text, not {}"),
        ("policies = 3", "policies: expected a table of policies, such as [policies.hint], not 3"),
        ("policies = [3]", "policies[0]: expected a Policy (or a table: [policies.NAME]), not 3"),
        ("[policies]\nhint = 3", "policies.hint: expected a table: [policies.hint] with quotas = '5/day', not 3"),
        ("[policies.hint]", "policies.hint.quotas: missing; write quotas = '5/day', or 'unlimited' for no limit"),
        (
            '[policies.hint]\nquotas = ["5/day", "3/fortnight"]',
            "policies.hint.quotas[1]: unknown unit 'fortnight'; use one of second, minute,",
        ),
        ('[policies.hint]\nquotas = "5/dya"', "policies.hint.quotas: unknown unit 'dya'; did you mean 'day'?"),
        ("[policies.hint]\nquotas = []", "policies.hint.quotas: no quota given; write 'unlimited'"),
        ("[policies.hint]\nquotas = true", "policies.hint.quotas: True is not a quota"),
        ("[policies.hint]\nquotas = {}", "policies.hint.quotas: limit is missing; write {limit = 5, window = 'day'}"),
        (
            '[policies.hint]\nquotas = [{ limit = 5, windw = "day" }]',
            "policies.hint.quotas[0].windw: unknown setting; did you mean 'window'?",
        ),
        (
            "[policies.hint]\nquotas = [{ limit = 5, window = 60 }]",
            "policies.hint.quotas[0].window: expected text such as 'day', not 60",
        ),
        (
            '[policies.hint]\nquotas = [{ limit = 1.5, window = "day" }]',
            "policies.hint.quotas[0]: limit must be a whole number, not 1.5",
        ),
        (
            '[policies.hint]\nquotas = [{ limit = 5, window = "day", burst = 9 }]',
            "policies.hint.quotas[0]: burst needs algorithm = 'gcra'",
        ),
        (HINT + "cots = 1", "policies.hint.cots: unknown setting; did you mean 'cost'?"),
        (HINT + "cost = 0", "policies.hint.cost: must be a whole number of at least 1"),
        (HINT + 'algorithm = "gcar"', "policies.hint.algorithm: unknown value 'gcar'; did you mean 'gcra'?"),
        (HINT + "match = [3]", "policies.hint.match[0]: expected text, not 3"),
        ('[policies."a\\u0000b"]\nquotas = "5/day"', "the action holds the control character"),
    ],
)
def test_what_is_wrong_and_what_would_be_right(tmp_path: Path, text: str, told: str) -> None:
    assert told in problem(tmp_path, text)


BUCKET = {"algorithm": "gcra"}


@pytest.mark.parametrize(
    ("hint", "org", "told"),
    [
        ({"cost": 6}, {}, "hint.cost: 6 can never fit 5/day: nothing would pass"),
        (
            {"cost": 6, "quotas": "5/day burst 4; 9/hour", **BUCKET},
            {},
            "hint.cost: 6 can never fit 5/day burst 4: noth",
        ),
        (
            {"cost": 4, "together": "org"},
            {},
            "hint.cost: 4 can never fit 3/day, the quota of 'org': nothing would pass",
        ),
        ({"together": "org"}, {"cost": 4}, "org.cost: 4 can never fit 3/day: nothing would pass"),
        ({"cost": 4, "together": "org"}, {"cost": 2}, ""),
        ({"cost": 6, "quotas": "5/day burst 6", **BUCKET}, {}, ""),
        ({"cost": 6, "quotas": "2 concurrent"}, {}, ""),
        ({"cost": 6, "quotas": "0/day"}, {}, ""),
        ({"cost": 6, "match": ()}, {}, ""),
    ],
)
def test_a_cost_that_can_never_fit(hint: dict[str, object], org: dict[str, object], told: str) -> None:
    policies = {"hint": {"quotas": "5/day", "match": "/hints", **hint}, "org": {"quotas": "3/day", **org}}
    with pytest.raises(ConfigError) if told else nullcontext() as caught:
        load_config(policies=policies, env={})
    assert caught is None or str(caught.value).startswith(f"policies.{told}")
    load_config(policies=policies, directory=True, env={})  # by a plan it may


def test_all_of_it_at_once(tmp_path: Path) -> None:
    text = f'deadline = 0\nstroe = "x"\n{HINT}mode = "on"\ncount = "no"\n[policies.run]'
    lines = problem(tmp_path, text).splitlines()
    assert lines[0] == "5 settings cannot be used:"
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "deadline",
        "stroe",
        "policies.hint.mode",
        "policies.hint.count",
        "policies.run.quotas",
    ]


def test_an_error_says_which_file(tmp_path: Path) -> None:
    path = tmp_path / "ratelimit.toml"
    path.write_text("deadline = 0", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path, env={})
    assert str(caught.value).endswith(f"(in {path})")
    assert caught.value.path == "deadline"


def test_an_error_in_a_keyword_argument_blames_no_file(tmp_path: Path) -> None:
    path = tmp_path / "ratelimit.toml"
    path.write_text("deadline = 1", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path, env={}, deadline=0)
    assert str(caught.value).endswith("not 0")


def test_a_mistake_in_the_syntax_names_its_line(tmp_path: Path) -> None:
    told = problem(tmp_path, 'store = "memory://"\ndeadline 3')
    assert told.startswith("FILE: not valid TOML: ")
    assert "line 2" in told


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "ratelimit.toml"
    path.write_text("deadline = 3\r\n", encoding="utf-8-sig", newline="")
    assert load_config(path, env={}).deadline == 3


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    with pytest.raises(ConfigError, match=r"missing\.toml: no such file$"):
        load_config(missing, env={})
    with pytest.raises(ConfigError, match=r"no such file \(named by RATELIMIT_CONFIG\)"):
        load_config(env={"RATELIMIT_CONFIG": str(missing)})
    with pytest.raises(ConfigError, match="is a directory"):
        load_config(tmp_path, env={})
    missing.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(missing, env={})
    missing.write_text("deadline = " + "[" * 5000 + "]" * 5000, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"missing\.toml: not TOML that can be read: it is nested too deeply$"):
        load_config(missing, env={})


def test_an_unknown_keyword_argument() -> None:
    with pytest.raises(ConfigError, match="headrs: unknown setting; did you mean 'headers'"):
        load_config(env={}, headrs="draft")  # type: ignore[call-arg]
