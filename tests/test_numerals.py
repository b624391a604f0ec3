"""A number is ASCII digits wherever text is read: what one program writes another reads the same."""

from __future__ import annotations

from typing import Any

import pytest

from ratelimit import ConfigError, InvalidQuota, Window, load_config
from ratelimit.numerals import to_float, to_int
from ratelimit.opening import store_from_url
from ratelimit.quota import to_quotas

FOREIGN = ["1_000", "٣", "\uff13", "1 0", " 3", "3\n", "0x10", "", "+", "²", "1e3", "9" * 41]


@pytest.mark.parametrize("text", [*FOREIGN, "3.0"])
def test_what_is_no_whole_number(text: str) -> None:
    with pytest.raises(ValueError, match="is not a whole number"):
        to_int(text)


@pytest.mark.parametrize(
    "text", [*(text for text in FOREIGN if text != "1e3"), "nan", "inf", "Infinity", "1_0.5", "٣.5", ".", "1e", "1e٣"]
)
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(ValueError, match="is not a number"):
        to_float(text)


def test_numbers() -> None:
    assert [to_int(text) for text in ("0", "007", "+3", "-12", "9" * 40)] == [0, 7, 3, -12, int("9" * 40)]
    assert [to_float(text) for text in ("0.25", "-.5", "3.", "1e-3", "2E3", "7")] == [0.25, -0.5, 3.0, 0.001, 2000, 7]


@pytest.mark.parametrize("text", ["٣/day", "3/\u0665 minutes", "3/day burst ٤", "1_000/day", "3/5_0 minutes"])
def test_in_a_quota(text: str) -> None:
    with pytest.raises(InvalidQuota):
        to_quotas(text)
    with pytest.raises(InvalidQuota):
        Window.parse("\u0665 minutes")


@pytest.mark.parametrize("text", ["٣", "1_0", "0.2_5"])
@pytest.mark.parametrize("name", ["RATELIMIT_DEADLINE", "RATELIMIT_DENIAL_CACHE", "RATELIMIT_POLICIES__HINT__COST"])
def test_in_the_environment(name: str, text: str) -> None:
    policies: Any = {"hint": {"quotas": "5/day"}}
    with pytest.raises(ConfigError):
        load_config(env={name: text}, policies=policies)


@pytest.mark.parametrize("url", ["memory://?max_keys=٣", "dynamodb://t?pool=1_0", "dynamodb://t?read_timeout=٣"])
def test_in_a_url(url: str) -> None:
    with pytest.raises(ConfigError):
        store_from_url(url)
