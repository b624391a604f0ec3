"""Every error names the path, says what would be right, and all of them come at once."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from ratelimit.config import load_config
from ratelimit.errors import ConfigError


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
