"""A table of settings: one field says all there is to say about one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ratelimit.config import SETTINGS, document, load_config
from ratelimit.errors import ConfigError
from ratelimit.policy import POLICY_SETTINGS, Policy
from ratelimit.settings import (
    Setting,
    boolean,
    converting_dataclass,
    number,
    numbers,
    one_of,
    patterns,
    setting,
    settings_of,
)


@converting_dataclass
class Lamp:
    name: str
    colour: str = setting("red", one_of(("red", "green")))
    watts: int = setting(40, int, number)


def test_settings_are_the_fields_that_say_so() -> None:
    assert list(settings_of(Lamp)) == ["colour", "watts"]
    assert settings_of(Lamp)["watts"] == Setting(int, number)
    assert Lamp("desk") == Lamp("desk", "red", 40)


@pytest.mark.parametrize(
    ("read", "text", "found"),
    [
        (number, "2", 2),
        (number, "0.5", 0.5),
        (number, "1_0", "1_0"),
        (numbers, "0.8, x", [0.8, "x"]),
        (boolean, "ON", True),
        (boolean, "maybe", "maybe"),
        (patterns, "GET,HEAD /a, /b", ["GET,HEAD /a", "/b"]),
    ],
)
def test_text_that_is_no_value_is_left_to_the_check(read, text, found) -> None:
    assert read(text) == found


def test_a_policy_is_checked_again_when_it_is_changed() -> None:
    policy = Policy("hint", "5/day", match="/a")
    assert replace(policy, mode="shadow") == Policy("hint", "5/day", match=["/a"], mode="shadow")
    with pytest.raises(ConfigError, match=r"^mode: unknown value"):
        replace(policy, mode="dark")  # type: ignore[arg-type]


def test_what_a_policy_needs_is_needed() -> None:
    with pytest.raises(TypeError):
        Policy("hint")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Policy("hint", "5/day", "gcra")  # type: ignore[call-arg]


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_every_setting_has_a_variable_that_its_check_reads(name: str) -> None:
    config = load_config(env={})
    shown = document(config).get(name)
    if isinstance(shown, list):
        shown = ",".join(map(str, shown))
    text: Any = "0123456789abcdef" if shown is None else str(shown)
    read = load_config(env={f"RATELIMIT_{name.upper()}": text})
    assert read == (config if shown is not None else replace(config, **dict[str, Any]({name: text})))


@pytest.mark.parametrize("name", sorted(POLICY_SETTINGS))
def test_every_setting_of_a_policy_has_one_too(name: str) -> None:
    written = {"lease": "auto", "match": "/a", "user_from": "user", "exempt": "/b", "alert_at": "0.8"}
    written |= {"together": "org", "share": "0.2", "refusal": "Slow down."}
    default = Policy("hint", "5/day")
    text = written.get(name) or ("5/day" if name == "quotas" else str(getattr(default, name)))
    env = {"RATELIMIT_POLICIES__HINT__QUOTAS": "5/day", f"RATELIMIT_POLICIES__HINT__{name.upper()}": text}
    if name in ("together", "share"):
        env |= {"RATELIMIT_POLICIES__ORG__QUOTAS": "9/day", "RATELIMIT_POLICIES__HINT__TOGETHER": "org"}
    policy = next(one for one in load_config(env=env).policies if one.name == "hint")
    assert (policy == default) == (name not in written)
