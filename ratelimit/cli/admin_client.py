"""Questions that commands ask of a running sidecar's admin listener."""

from __future__ import annotations

from http.client import HTTPException
from typing import Final
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from ratelimit.config.secrets import masked
from ratelimit.errors import ConfigError, StoreUnavailable
from ratelimit.settings import http_url

TOKEN: Final = "RATELIMIT_ADMIN_TOKEN"

_TIMEOUT: Final = 10.0
_LARGEST: Final = 16 * 2**20


class _NotElsewhere(HTTPRedirectHandler):
    """Follow nothing: a redirect may lead to any host, and the token would go with it."""

    def redirect_request(self, *_: object) -> None:
        """Never."""


def ask(url: str, what: str, *, token: str | None, option: str) -> bytes:
    """Return the answer at this URL; of one without a path, at its `/what`.

    Raises `ConfigError` for the URL that an `option` gave, `StoreUnavailable` where no such thing comes from it.
    """
    parts = http_url(url)
    if parts is None or "@" in url:
        raise ConfigError(option, f"{masked(url)!r} is no URL; write it like http://127.0.0.1:8081/{what}")
    address = url if parts.path not in ("", "/") else parts._replace(path=f"/{what}").geturl()
    headers = {"Accept": "text/plain, application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    try:
        with build_opener(_NotElsewhere).open(Request(address, headers=headers), timeout=_TIMEOUT) as answer:
            body: bytes = answer.read(_LARGEST)
            return body
    except HTTPError as error:
        error.close()
        hint = f"; set {TOKEN}" if error.code in (401, 403) else ""
        raise StoreUnavailable(f"{address} answered {error.code}{hint}") from None
    except URLError as error:
        why = getattr(error.reason, "strerror", None) or error.reason
        raise StoreUnavailable(f"nothing answers at {address}: {why}; is the service running there?") from None
    except (OSError, HTTPException, ValueError) as error:
        raise StoreUnavailable(f"no usable answer from {address}: {error}") from None
