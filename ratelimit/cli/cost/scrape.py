"""One look at a running service's metrics."""

from __future__ import annotations

import os
from http.client import HTTPException
from typing import Final
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from ratelimit.errors import ConfigError, StoreUnavailable

TOKEN: Final = "RATELIMIT_ADMIN_TOKEN"

_TIMEOUT: Final = 10.0
_LARGEST: Final = 16 * 2**20


class _NotElsewhere(HTTPRedirectHandler):
    """A redirect may lead to any host, and the token would go with it."""

    def redirect_request(self, *_: object) -> None:
        """Never."""


def scrape(url: str) -> str:
    """The text at this URL; without a path, at its `/metrics`. The token is that of `RATELIMIT_ADMIN_TOKEN`.

    Raises `ConfigError` for the URL, `StoreUnavailable` where no metrics come from it.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise ConfigError(
            "--from-metrics", f"{url!r} is no URL of metrics; write it like http://127.0.0.1:8081/metrics"
        )
    address = url if parts.path not in ("", "/") else parts._replace(path="/metrics").geturl()
    headers = {"Accept": "text/plain"}
    if token := os.environ.get(TOKEN):
        headers["Authorization"] = f"Bearer {token}"
    try:
        with build_opener(_NotElsewhere).open(Request(address, headers=headers), timeout=_TIMEOUT) as answer:
            body: bytes = answer.read(_LARGEST)
            return body.decode("utf-8", "replace")
    except HTTPError as error:
        error.close()
        hint = f"; set {TOKEN}" if error.code in (401, 403) else ""
        raise StoreUnavailable(f"{address} answered {error.code}{hint}") from None
    except (OSError, HTTPException, ValueError) as error:
        raise StoreUnavailable(f"no metrics from {address}: {error}") from None
