"""The rules of envoyproxy/ratelimit: read as they are, found as it finds them, and refused with file and line."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit import ConfigError, Policy
from ratelimit.config.envoy import (
    NO_RULES,
    EnvoyRules,
    fingerprint,
    matches,
    policy_name,
    read_envoy_rules,
    user_of,
)
from ratelimit.names import check_action, check_user

EXAMPLE = """
    domain: edge
    descriptors:
      - key: remote_address
        rate_limit: {unit: second, requests_per_unit: 10}
      - key: remote_address
        value: 50.0.0.5
        rate_limit: {unit: SECOND, requests_per_unit: 0}
      - key: message_type
        value: marketing
        descriptors:
          - key: to_number
            rate_limit: {name: per-number, unit: day, requests_per_unit: 5, replaces: [{name: other}]}
      - key: path
        value: /api/*
        rate_limit: {unit: month, requests_per_unit: 20}
      - key: path
        value: "*/health"
        share_threshold: true
        rate_limit: {unit: week, requests_per_unit: 30}
      - key: path
        rate_limit: {unit: year, requests_per_unit: 40}
      - key: status
        value: 404
        shadow_mode: yes
        detailed_metric: true
        rate_limit: {unit: minute, unit_multiplier: 5, requests_per_unit: 100}
        descriptors:
          - key: user
            quota_mode: true
            rate_limit: {unit: hour, requests_per_unit: 7}
      - key: ldap
        rate_limit: {unlimited: true}
      - key: listed
"""


def rules_of(folder: Path, *texts: str) -> EnvoyRules:
    for number, text in enumerate(texts):
        (folder / f"{number}.yaml").write_text(dedent(text))
    return read_envoy_rules(str(folder))


def found(rules: EnvoyRules, *entries: tuple[str, str], domain: str = "edge") -> tuple[str, str] | None:
    rule = rules.domains[domain].find(entries)
    if rule is None:
        return None
    return "unlimited" if rule.policy is None else rule.policy.name, rule.user(entries)


def test_each_limit_is_a_policy(tmp_path: Path) -> None:
    rules = rules_of(tmp_path, EXAMPLE)
    assert rules.policies == (
        Policy("edge.remote_address", "10/second"),
        Policy("edge.remote_address_50.0.0.5", "0/second"),
        Policy("edge.message_type_marketing.to_number", "5/day"),
        Policy("edge.path_/api/*", "20 per 30 days"),
        Policy("edge.path_*/health", "30 per 7 days"),
        Policy("edge.path", "40 per 365 days"),
        Policy("edge.status_404", "100 per 5 minutes", mode="shadow"),
        Policy("edge.status_404.user", "7/hour"),
    )


@pytest.mark.parametrize(
    ("entries", "policy", "user"),
    [
        ([("remote_address", "10.0.0.1")], "edge.remote_address", "10.0.0.1"),
        ([("remote_address", "50.0.0.5")], "edge.remote_address_50.0.0.5", "*"),
        ([("message_type", "marketing"), ("to_number", "206")], "edge.message_type_marketing.to_number", "206"),
        ([("path", "/api/orders")], "edge.path_/api/*", "/api/orders"),
        ([("path", "/a/health")], "edge.path_*/health", "*"),
        ([("path", "/api/health")], "edge.path_/api/*", "/api/health"),  # the first that fits
        ([("path", "/")], "edge.path", "/"),
        ([("status", "404")], "edge.status_404", "*"),
        ([("status", "404"), ("user", "u")], "edge.status_404.user", "u"),
        ([("ldap", "x")], "unlimited", "x"),
    ],
)
def test_value_before_pattern_before_key(tmp_path: Path, entries, policy, user) -> None:
    assert found(rules_of(tmp_path, EXAMPLE), *entries) == (policy, user)


@pytest.mark.parametrize(
    "entries",
    [
        [("message_type", "marketing")],  # no limit of its own
        [("message_type", "marketing"), ("to_number", "1"), ("more", "1")],  # deeper than the file
        [("message_type", "other"), ("to_number", "1")],
        [("remote_address", "10.0.0.1"), ("path", "/")],
        [("listed", "x")],
        [("unknown", "x")],
        [("status", "200")],
        [("Remote_Address", "10.0.0.1")],
    ],
)
def test_no_limit_where_depth_or_keys_differ(tmp_path: Path, entries) -> None:
    assert found(rules_of(tmp_path, EXAMPLE), *entries) is None


def test_what_a_rule_says_of_itself(tmp_path: Path) -> None:
    rule = rules_of(tmp_path, EXAMPLE).domains["edge"].find([("message_type", "marketing"), ("to_number", "1")])
    assert rule is not None
    assert (rule.requests_per_unit, rule.unit, rule.multiplier, rule.name, rule.replaces, rule.quota_mode) == (
        5, "day", 1, "per-number", ("other",), False,
    )  # fmt: skip


def test_files_of_one_domain_are_one(tmp_path: Path) -> None:
    one = "domain: a\ndescriptors: [{key: k, rate_limit: {unit: day, requests_per_unit: 1}}]"
    rules = rules_of(tmp_path, one, one.replace("key: k", "key: l"), one.replace("domain: a", "domain: b"))
    assert [found(rules, (key, "v"), domain="a") for key in ("k", "l")] == [("a.k", "v"), ("a.l", "v")]
    assert found(rules, ("k", "v"), domain="b") == ("b.k", "v")


def test_which_files_count(tmp_path: Path) -> None:
    text = "domain: DOMAIN\ndescriptors: []"
    for name in ("b.yml", "a.yaml", ".hidden.yaml", "notes.txt", "c.yaml.bak"):
        (tmp_path / name).write_text(text.replace("DOMAIN", name))
    (tmp_path / "folder.yaml").mkdir()
    rules = read_envoy_rules(str(tmp_path))
    assert list(rules.domains) == ["a.yaml", "b.yml"]
    assert read_envoy_rules(str(tmp_path / "notes.txt")).domains.keys() == {"notes.txt"}


def test_rules_are_compared_by_what_was_in_their_files_and_go_to_other_processes(tmp_path: Path) -> None:
    rules = rules_of(tmp_path, EXAMPLE)
    copied = pickle.loads(pickle.dumps(rules))
    assert copied == rules == read_envoy_rules(rules) == read_envoy_rules(tmp_path)
    assert found(copied, ("path", "/api/orders")) == ("edge.path_/api/*", "/api/orders")
    assert rules_of(tmp_path, EXAMPLE + "      # a remark\n") != rules
    assert bool(rules) is True
    assert bool(NO_RULES) is False
    assert read_envoy_rules("off") is NO_RULES


def test_anchors_and_merges(tmp_path: Path) -> None:
    text = """
        domain: a
        descriptors:
          - key: one
            rate_limit: &limit {unit: day, requests_per_unit: 1}
          - key: two
            rate_limit: {<<: *limit, requests_per_unit: 2}
    """
    assert rules_of(tmp_path, text).policies == (Policy("a.one", "1/day"), Policy("a.two", "2/day"))


DESCRIPTORS = "domain: a\ndescriptors:\n"
LIMIT = "rate_limit: {unit: day, requests_per_unit: 1}"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "1: is empty; write domain: NAME"),
        ("[1]", "1: expected the file, such as {domain, descriptors}"),
        ("descriptors: []", "1: the domain is missing; write domain: NAME"),
        ("\ndomain: ''", "2: the domain is missing"),
        ("domain: a\nDescriptors: []", "2: unknown key 'Descriptors'; did you mean descriptors?"),
        ("domain: a\ndescriptors: {}", "2: descriptors is a list; begin each item with a dash"),
        ("domain: a\ndomain: b", "2: domain is there twice"),
        (DESCRIPTORS + "- 5", "3: expected a descriptor, such as {key, value"),
        (DESCRIPTORS + "- value: x", "3: the descriptor has no key; write key: remote_address"),
        (DESCRIPTORS + "- {key: [x]}", "3: expected text"),
        (DESCRIPTORS + "- key: k\n  ratelimit: {}", "4: unknown key 'ratelimit'; did you mean rate_limit?"),
        (DESCRIPTORS + "- key: k\n  colour: x", "4: unknown key 'colour'; a descriptor has key, value"),
        (DESCRIPTORS + f"- key: k\n- {{key: k, {LIMIT}}}", "4: a second descriptor 'a.k'; merge it into the first"),
        (DESCRIPTORS + "- key: k\n  share_threshold: true", "4: share_threshold is for"),
        (DESCRIPTORS + "- key: k\n  shadow_mode: maybe", "4: expected true or false, not 'maybe'"),
        (
            DESCRIPTORS + "- key: k\n  rate_limit: {unit: day}",
            "4: the requests_per_unit is missing; write rate_limit",
        ),
        (DESCRIPTORS + "- key: k\n  rate_limit: {requests_per_unit: 1}", "4: the unit is missing"),
        (DESCRIPTORS + f"- key: k\n  {LIMIT.replace('day', 'dya')}", "4: unknown unit 'dya'; did you mean day?"),
        (DESCRIPTORS + f"- key: k\n  {LIMIT.replace('day', '7')}", "4: unknown unit '7'; use one of second, minute"),
        (DESCRIPTORS + f"- key: k\n  {LIMIT.replace('1', '-1')}", "4: expected a whole number from 0 to 4294967295"),
        (DESCRIPTORS + f"- key: k\n  {LIMIT.replace('1', '4294967296')}", "4: expected a whole number from 0"),
        (DESCRIPTORS + f"- key: k\n  {LIMIT.replace('1', '1.5')}", "4: expected a whole number from 0"),
        (DESCRIPTORS + f"- key: k\n  {LIMIT.replace('1', 'many')}", "4: expected a whole number from 0"),
        (
            DESCRIPTORS + "- key: k\n  rate_limit: {unlimited: true,\n    unit: day}",
            "5: a limit that is unlimited has no",
        ),
        (DESCRIPTORS + f"- key: k\n  {LIMIT[:-1]},\n    unit_multiplier: 4000}}", "5: a window of 4000 days is longer"),
        (DESCRIPTORS + f"- key: k\n  {LIMIT[:-1]}, unit_multiplier: 0}}", "4: expected a whole number from 1"),
        (DESCRIPTORS + f"- key: k\n  {LIMIT[:-1]}, replaces: [{{}}]}}", "4: whom does it replace?"),
        (DESCRIPTORS + f"- key: k\n  {LIMIT[:-1]}, name: n, replaces: [name: n]}}", "4: 'n' replaces itself"),
        (
            DESCRIPTORS + f"- key: k\n  {LIMIT[:-1]}, shadow_mode: true}}",
            "4: unknown key 'shadow_mode'; a rate_limit",
        ),
        (DESCRIPTORS + "- key: k\n bad", "4: not YAML: "),
        (DESCRIPTORS + "- key: 'k", "3: not YAML: "),
        ("domain: a\n---\ndomain: b", "2: not YAML: "),
        ("domain: \x07", "1: not YAML: "),
        ("[" * 500, "1: is nested too deeply"),
    ],
)
def test_a_mistake_is_told_with_file_and_line_and_what_would_be_right(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "rules.yaml").write_text(text)
    with pytest.raises(ConfigError) as told:
        read_envoy_rules(str(tmp_path))
    assert str(told.value).startswith(f"{tmp_path / 'rules.yaml'}:{problem}")


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as told:
        rules_of(tmp_path, DESCRIPTORS + "- value: x\n- key: k\n  descriptors: [{colour: red}]", "domain: ''")
    lines = str(told.value).splitlines()
    assert lines[0] == "3 mistakes:"
    assert [line.split(":", 2)[1] for line in lines[1:]] == ["3", "5", "1"]


def test_a_tree_that_contains_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nested 32 deep at most"):
        rules_of(tmp_path, "domain: a\ndescriptors: &all\n- key: k\n  descriptors: *all")


def test_a_few_lines_do_not_become_a_million_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ratelimit.config.envoy.MAX_DESCRIPTORS", 40)
    text = DESCRIPTORS + f"- &d0 {{key: k, {LIMIT}}}\n"
    for level in range(1, 20):
        text += (
            f"- &d{level} {{key: k{level}, descriptors: [*d{level - 1}, {{key: l, descriptors: [*d{level - 1}]}}]}}\n"
        )
    with pytest.raises(ConfigError, match="more than 40 descriptors"):
        rules_of(tmp_path, text)


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        ("/nowhere/at/all", "/nowhere/at/all: no such file or directory"),
        ("", "expected the directory of envoyproxy/ratelimit's YAML files, or 'off', not ''"),
        (5, "expected the directory of envoyproxy/ratelimit's YAML files, or 'off', not 5"),
    ],
)
def test_a_place_that_is_none(place: object, problem: str) -> None:
    with pytest.raises(ConfigError) as told:
        read_envoy_rules(place)
    assert str(told.value) == problem


def test_an_empty_directory_and_other_bytes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no \*.yaml in it"):
        read_envoy_rules(tmp_path)
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        read_envoy_rules(tmp_path)


def test_a_fingerprint_differs_when_a_file_does(tmp_path: Path) -> None:
    rules = rules_of(tmp_path, EXAMPLE)
    assert rules.fingerprint == fingerprint(tmp_path) is not None
    (tmp_path / "0.yaml").write_text("domain: b")
    written = fingerprint(tmp_path)
    (tmp_path / "1.yaml").write_text("domain: c")
    added = fingerprint(tmp_path)
    (tmp_path / "0.yaml").unlink()
    assert len({repr(each) for each in (rules.fingerprint, written, added, fingerprint(tmp_path))}) == 4
    assert fingerprint(tmp_path / "nowhere") is None


def test_a_fingerprint_differs_when_a_mounted_directory_is_exchanged(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.yaml").write_text("domain: a")
        os.utime(tmp_path / name / "a.yaml", (1, 1))
    (tmp_path / "config").mkdir()
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "config" / "a.yaml").symlink_to("../..data/a.yaml")
    before = fingerprint(tmp_path / "config")
    (tmp_path / "new").symlink_to("two")
    os.replace(tmp_path / "new", tmp_path / "..data")
    assert fingerprint(tmp_path / "config") != before


@given(st.text("ab*", max_size=6), st.text("ab", max_size=8))
def test_patterns_match_as_regular_expressions_do(pattern: str, value: str) -> None:
    if "*" in pattern:
        assert matches(pattern, value) == bool(re.fullmatch(pattern.replace("*", ".*"), value))


@given(st.lists(st.text(max_size=40), max_size=4))
def test_every_descriptor_is_a_user_that_can_be_stored(values: list[str]) -> None:
    user = user_of(values)
    assert check_user(user) == user
    assert user_of(values) == user


def test_users_are_told_apart() -> None:
    assert user_of(["a|b", "c"]) != user_of(["a", "b|c"])
    assert user_of(["a%7Cb", "c"]) != user_of(["a|b", "c"])
    assert user_of([""]) != user_of(["~"])
    long, digest = "x" * 300, user_of(["x" * 300])
    assert digest.startswith("~")
    assert user_of([digest]) != digest
    assert user_of([long + "y"]) != digest


def test_a_policys_name_is_its_path_if_it_can_be() -> None:
    assert policy_name(("edge", "path_/api/*", "key")) == "edge.path_/api/*.key"
    long = policy_name(("edge", "k" * 100))
    assert long == check_action(long)
    assert long.startswith("edge.kkkk")
    assert long != policy_name(("edge", "k" * 101))
    assert policy_name(("a", "b"), taken=["a.b"]) != policy_name(("a.b",), taken=["a.b"])
    assert check_action(policy_name(("e\n#%ü",)))
