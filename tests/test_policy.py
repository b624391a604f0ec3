"""Policies and names: what is accepted, and where an error points."""

from __future__ import annotations

from typing import Any

import pytest

from ratelimit import UNLIMITED, ConfigError, InvalidAction, InvalidUser, Policy, Quota
from ratelimit.names import MAX_USER_BYTES, Key
from ratelimit.policy import RefusalTemplate


def test_defaults_need_nothing_but_a_name_and_quotas() -> None:
    policy = Policy("hint", "5/day")
    assert policy.quotas == (Quota(5, "day"),)
    assert (policy.algorithm, policy.mode, policy.on_unavailable, policy.count) == (
        "fixed_window", "enforce", "local", "all",
    )  # fmt: skip


def test_one_value_stands_for_a_list_of_one() -> None:
    policy = Policy("hint", quotas=Quota(5, "day"), match="POST /hints", user_from="header:x-api-key")
    assert (policy.match, policy.user_from) == (("POST /hints",), ("header:x-api-key",))


def test_unlimited() -> None:
    assert Policy("hint", "unlimited").quotas is UNLIMITED


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"name": ""}, "name"),
        ({"quotas": "5/fortnight"}, "quotas"),
        ({"quotas": ["5/day", "5/fortnight"]}, "quotas[1]"),
        ({"quotas": []}, "quotas"),
        ({"quotas": [Quota(1, "day"), Quota(5, "second", burst=9)]}, "quotas[1]"),
        ({"algorithm": "gcar"}, "algorithm"),
        ({"mode": "dark"}, "mode"),
        ({"on_unavailable": "open"}, "on_unavailable"),
        ({"count": "errors"}, "count"),
        ({"cost": 0}, "cost"),
        ({"cost": 1.5}, "cost"),
        ({"cost": True}, "cost"),
        ({"match": 5}, "match"),
        ({"match": ["/a", ""]}, "match[1]"),
        ({"user_from": ["user", 7]}, "user_from[1]"),
    ],
)
def test_errors_name_the_path(options: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Policy(**{"name": "hint", "quotas": "5/day", **options})
    assert caught.value.path == path


def test_errors_suggest_the_nearest_value() -> None:
    with pytest.raises(ConfigError, match="did you mean 'gcra'"):
        Policy("hint", "5/day", algorithm="gcar")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "user", ["", "a\nb", "a\x00", "\x7f", "a\u2028b", "\ud800", "x" * (MAX_USER_BYTES + 1), "é" * 2000]
)
def test_a_user_that_cannot_be_stored_is_refused(user: str) -> None:
    with pytest.raises(InvalidUser):
        Key.of(user, "hint")


@pytest.mark.parametrize("user", [7.0, True, None, b"alice", ["alice"]])
def test_a_user_that_is_not_text_is_refused(user: Any) -> None:
    with pytest.raises(InvalidUser, match="must be text"):
        Key.of(user, "hint")


@pytest.mark.parametrize("action", ["", "a\tb", "x" * 65])
def test_an_action_that_cannot_be_stored_is_refused(action: str) -> None:
    with pytest.raises(InvalidAction):
        Key.of("alice", action)


@pytest.mark.parametrize("user", ["alice", "a#b%c/d", "ålice ❤", "a b", "ip:2001:db8::/64", "x" * MAX_USER_BYTES])
def test_any_other_text_is_a_user(user: str) -> None:
    assert Key.of(user, "hint").user == user


@pytest.mark.parametrize(
    ("refusal", "path"),
    [
        (7, "refusal: must be text, or a table"),
        ({}, "refusal.body: expected the text"),
        ({"body": 7}, "refusal.body: expected the text"),
        ({"body": "", "staus": 429}, r"refusal.staus: unknown setting; did you mean 'status'\?"),
        ({"body": "", "status": 200}, "refusal.status: must be a status from 400 to 599"),
        ({"body": "", "status": "429"}, "refusal.status: must be a status from 400 to 599"),
        ({"body": "", "content_type": "html"}, "refusal.content_type: expected one such as"),
        ({"body": "", "content_type": "text/html\r\nset-cookie: a=b"}, "refusal.content_type: expected one such as"),
        ("Wait {seconds} s.", r"refusal.body: \{seconds\} stands for nothing; there are: policy, limit"),
    ],
)
def test_bad_refusals(refusal: Any, path: str) -> None:
    with pytest.raises(ConfigError, match=path):
        Policy("hint", "5/day", refusal=refusal)


def test_a_refusal_is_a_text_or_a_table() -> None:
    template = RefusalTemplate("Slow down.")
    assert Policy("hint", "5/day", refusal="Slow down.").refusal == template
    assert Policy("hint", "5/day", refusal={"body": "Slow down."}).refusal == template
    assert Policy("hint", "5/day", refusal=template).refusal == template
