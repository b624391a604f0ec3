"""A configuration to look at: all of it, and nothing that is secret."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest

from ratelimit import Config, ConfigError, Policy, load_config
from ratelimit.config import document

TOKEN = "s3cret-of-enough-letters"


def test_every_setting_is_there_but_those_not_set() -> None:
    unset = {field.name for field in fields(Config) if getattr(Config(), field.name) is None}
    assert {*document(Config()), *unset} == {field.name for field in fields(Config)}


def test_it_is_json() -> None:
    config = Config(
        exempt=("/health", callable), policies=(Policy("hint", "5/day", cost=len), Policy("free", "unlimited"))
    )
    found = json.loads(json.dumps(document(config)))
    assert found["exempt"] == ["/health", "function callable"]
    assert found["policies"]["hint"]["quotas"] == ["5/day"]
    assert found["policies"]["hint"]["cost"] == "function len"
    assert found["policies"]["free"]["quotas"] == "unlimited"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://hooks.example.com/services/T0001/s3cret", "https://hooks.example.com/***"),
        ("https://me:s3cret@hooks.example.com:8443?key=s3cret", "https://hooks.example.com:8443/***"),
        ("https://hooks.example.com/a@s3cret?//s3cret@b\ns3cret", "https://hooks.example.com/***"),
        ("https://hooks.example.com", "https://hooks.example.com"),
        ("off", "off"),
    ],
)
def test_of_a_webhook_only_the_host_is_shown(url: str, shown: str) -> None:
    assert document(Config(alert_webhook=url))["alert_webhook"] == shown


@pytest.mark.parametrize("value", ["hooks.example.com/s3cret", "https:///s3cret", "https://a/b c/s3cret", ["s3cret"],
     "https://a:99999/s3cret", "https://a:0/s3cret", "https://a:b/s3cret", "https://[::1/s3cret"],
)  # fmt: skip
def test_a_webhook_that_cannot_be_is_not_quoted(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^alert_webhook: expected 'off', or a URL") as caught:
        load_config(env={}, alert_webhook=value)
    assert "s3cret" not in str(caught.value)


def test_no_secret_is_shown() -> None:
    config = load_config(
        env={
            "RATELIMIT_ADMIN_TOKEN": TOKEN,
            "RATELIMIT_API_TOKEN": TOKEN,
            "RATELIMIT_STORE": "dynamodb://t?endpoint=http://me:s3cret@host",
        }
    )
    found = document(config)
    assert (found["admin_token"], found["api_token"]) == ("***", "***")
    assert "s3cret" not in json.dumps(found)
    assert "s3cret" not in repr(config)
