"""The suite's engine: which one, and the environment that tests run in. `ratelimit.testing.engines` starts it."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from ipaddress import ip_address
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from ratelimit.testing.engines import REGION, Engine, EngineError, start

__all__ = ["AUTHORITY", "Choice", "Engine", "EngineError", "choose", "isolate", "start"]


# Which engine the developer asked for. A wish that cannot be granted is an error, never a smaller suite.


ENGINES: Final = ("ministack", "dynamodb-local")


class Choice(NamedTuple):
    """An engine to start, or with `endpoint` one that runs already."""

    name: str
    endpoint: str | None = None


def choose(environ: Mapping[str, str]) -> Choice:
    """Read `RATELIMIT_TEST_ENGINE` and `RATELIMIT_TEST_ENDPOINT`. Raises `EngineError`."""
    name = environ.get("RATELIMIT_TEST_ENGINE", "")
    endpoint = environ.get("RATELIMIT_TEST_ENDPOINT", "")
    if endpoint:
        _check_loopback(endpoint)
        return Choice(name or "running", endpoint.rstrip("/"))
    if name and name not in ENGINES:
        raise EngineError(f"RATELIMIT_TEST_ENGINE={name}: use one of {', '.join(ENGINES)}")
    return Choice(name or ENGINES[0])


def _check_loopback(endpoint: str) -> None:
    """The suite creates and deletes tables: it must never be pointed at AWS, nor at anybody else's machine."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise EngineError(f"RATELIMIT_TEST_ENDPOINT={endpoint}: write it as http://127.0.0.1:4566")
    try:
        loopback = parts.hostname == "localhost" or ip_address(parts.hostname).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise EngineError(f"RATELIMIT_TEST_ENDPOINT={endpoint}: the suite only talks to this machine's loopback")


# The environment that tests run in: nothing of the developer's AWS account, nor of their settings.


AUTHORITY: Final = str(Path(__file__).with_name("authority.pem"))
"""The one authority that tests trust, whose key nobody has: a machine's hundreds take 40 ms at every client."""

_FAKE: Final = {
    "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "not-a-secret",
    "AWS_REGION": REGION,
    "AWS_DEFAULT_REGION": REGION,
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
    # A test that forgets its endpoint is refused by its own machine, instead of reaching AWS.
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    "SSL_CERT_FILE": AUTHORITY,
}
_PROXIES: Final = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
_CERTIFICATES: Final = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_DIR")


def isolate(environ: MutableMapping[str, str]) -> None:
    """Drop every `AWS_*`, proxy and `RATELIMIT_*` variable (but `RATELIMIT_TEST_*`), and set fake credentials."""
    for name in list(environ):
        ours = name.startswith("RATELIMIT_") and not name.startswith("RATELIMIT_TEST_")
        if ours or name.startswith("AWS_") or name.lower() in _PROXIES or name in _CERTIFICATES:
            del environ[name]
    environ.update(_FAKE)
