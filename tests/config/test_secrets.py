"""Credentials in a URL are never shown."""

from __future__ import annotations

import pytest

from ratelimit.config import masked


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("memory://?max_keys=5", "memory://?max_keys=5"),
        ("dynamodb://t?region=eu-west-1&create=true", "dynamodb://t?region=eu-west-1&create=true"),
        ("dynamodb://me:s3cret@t?region=eu-west-1", "dynamodb://***@t?region=eu-west-1"),
        ("dynamodb://t?endpoint=http://me:s3cret@host:1&a=b", "dynamodb://t?endpoint=http://***@host:1&a=b"),
        ("dynamodb://t?endpoint=http%3A%2F%2Fme%3As3cret%40host", "dynamodb://t?endpoint=http%3A%2F%2F***@host"),
        ("dynamodb://t?aws_secret_access_key=s3cret&region=x", "dynamodb://t?aws_secret_access_key=***&region=x"),
        ("dynamodb://t?session_token=s3cret", "dynamodb://t?session_token=***"),
    ],
)
def test_masked(url: str, shown: str) -> None:
    assert masked(url) == shown
