"""Store URLs: what they mean, and what a typing error is answered with."""

from __future__ import annotations

from typing import Any

import pytest

from ratelimit.dynamodb import Settings, parse_url
from ratelimit.dynamodb.settings import is_amazon, is_loopback
from ratelimit.errors import ConfigError


def test_a_table_is_enough() -> None:
    assert parse_url("dynamodb://My_Table.2") == Settings(table="My_Table.2")


def test_every_parameter() -> None:
    url = (
        "dynamodb://limits?region=eu-west-1&endpoint=http://localhost:4566&create=true&consumed=yes"
        "&pool=8&attempts=1&connect_timeout=0.5&read_timeout=3"
    )
    assert parse_url(url) == Settings(
        table="limits",
        region="eu-west-1",
        endpoint="http://localhost:4566",
        create=True,
        consumed=True,
        pool=8,
        attempts=1,
        connect_timeout=0.5,
        read_timeout=3.0,
    )


def test_an_endpoint_may_be_percent_encoded() -> None:
    assert parse_url("dynamodb://limits?endpoint=http%3A%2F%2F%5B%3A%3A1%5D%3A8000").endpoint == "http://[::1]:8000"


@pytest.mark.parametrize(
    ("url", "path", "problem"),
    [
        ("dynamodb://", "table", "names no table; write dynamodb://my-table"),
        ("dynamodb://ab", "table", "'ab' is no table name: 3 to 255"),
        ("dynamodb://my table", "table", "no table name"),
        ("dynamodb://limits:8000", "table", "no table name"),
        ("dynamodb://limits/other", "", "between the table and its parameters"),
        ("dynamodb://limits#x", "", "between the table and its parameters"),
        ("redis://limits", "", "starts with dynamodb://"),
        ("dynamodb://limits?regoin=eu-west-1", "regoin", "did you mean 'region'?"),
        ("dynamodb://limits?zzz=1", "zzz", "there are region, endpoint, create"),
        ("dynamodb://limits?region=", "region", "is empty"),
        ("dynamodb://limits?region", "", "not a store URL"),
        ("dynamodb://limits?region=EU West", "region", "write it like 'eu-west-1'"),
        ("dynamodb://limits?region=a-1&region=b-1", "region", "given twice"),
        ("dynamodb://limits?create=maybe", "create", "true or false, not 'maybe'"),
        ("dynamodb://limits?endpoint=localhost:4566", "endpoint", "write it like 'http://localhost:4566'"),
        ("dynamodb://limits?endpoint=http://localhost:port", "endpoint", "not a URL"),
        ("dynamodb://limits?endpoint=ftp://x", "endpoint", "not a URL"),
        ("dynamodb://limits?pool=many", "pool", "whole number of at least 1, not 'many'"),
        ("dynamodb://limits?pool=0", "pool", "at least 1, not 0"),
        ("dynamodb://limits?read_timeout=soon", "read_timeout", "number of seconds above 0, not 'soon'"),
        ("dynamodb://limits?read_timeout=nan", "read_timeout", "must be a number of seconds above 0, not 'nan'"),
        ("dynamodb://limits?connect_timeout=-1", "connect_timeout", "above 0"),
    ],
)
def test_what_is_wrong_and_what_would_be_right(url: str, path: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_url(url)
    assert caught.value.path == path
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    "url", ["dynamodb://AKIAX:secret@limits", "dynamodb://limits?endpoint=http://AKIAX:secret@localhost:4566"]
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError, match="credentials") as caught:
        parse_url(url)
    assert "secret" not in str(caught.value)
    assert "AKIAX" not in str(caught.value)


@pytest.mark.parametrize(
    "bad", [{"table": 5}, {"create": "true"}, {"pool": True}, {"attempts": 0}, {"read_timeout": "1"}]
)
def test_settings_check_themselves(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        Settings(**{"table": "limits", **bad})


def test_where_an_endpoint_is() -> None:
    local = [
        "http://localhost:4566",
        "http://127.0.0.1",
        "http://127.9.9.9:1",
        "https://[::1]:8000",
        "http://ddb.localhost",
    ]
    assert [is_loopback(endpoint) for endpoint in local] == [True] * 5
    remote = [None, "", "http://localstack:4566", "http://10.0.0.1", "https://localhost.example.com", "http://[::1"]
    assert [is_loopback(endpoint) for endpoint in remote] == [False] * 6
    assert is_amazon("https://dynamodb.eu-west-1.amazonaws.com")
    assert not is_amazon("http://localhost:4566")
    assert not is_amazon("https://amazonaws.com.example.org")
