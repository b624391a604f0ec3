"""Which engine the developer asked for. A wish that cannot be granted is an error, never a smaller suite."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from ratelimit.testing.engines import EngineError

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
