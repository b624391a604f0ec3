"""What must not be shown: credentials in a URL, a URL that is one itself, and tokens."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote

from ratelimit.errors import ConfigError

MASK: Final = "***"
SHORTEST_TOKEN: Final = 16

# A password may hold whatever its owner did not encode (`/`, `?`, `#`, `@`, spaces), so that nobody can say where it
# ends but at the last `@`: rather a host or a path too much is hidden than a letter of it shown.
_CREDENTIALS = re.compile(r"(?<=//).*@", re.DOTALL)
_HAS_SCHEME = re.compile(r"([\w+.-]+:)?//")
_NO_SCHEME = re.compile(r"^[^/@]*:.*@", re.DOTALL)
# In a parameter (`endpoint=http://user:password@host`, percent-encoded or not) up to the next parameter's beginning.
_IN_PARAMETER = re.compile(r"(?<=//)(?:(?!&\w+=).)*@", re.DOTALL)
_ENCODED = re.compile(r"(?<=%2F%2F)(?:(?!&\w+=).)*(?:%40|@)", re.IGNORECASE | re.DOTALL)
_PARAMETER = re.compile(
    r"(?<=[?&])([^=&#]*(?:secret|password|passwd|token|credential|key_id|access_key|api_key)[^=&#]*)=[^&]*",
    re.IGNORECASE,
)
_TABLE = re.compile(r"(?P<table>(?:dynamodb|earlier)://[^/?#@:]*\?)(?P<parameters>\w+=.*)", re.DOTALL)
_SERVER = re.compile(r"(?P<scheme>[\w+.-]+://)(?P<authority>[^/?#\\]*)(?P<rest>.*)", re.DOTALL)
_FRAGMENT: Final = 3


def masked(url: str) -> str:
    """Return the URL with every credential in it replaced, fit for a terminal or a log; parsed or not."""
    if table := _TABLE.fullmatch(url):
        parameters = _ENCODED.sub(f"{MASK}@", _IN_PARAMETER.sub(f"{MASK}@", table["parameters"]))
        url = table["table"] + parameters
    else:
        url = (_CREDENTIALS if _HAS_SCHEME.match(url) else _NO_SCHEME).sub(f"{MASK}@", url)
    return _PARAMETER.sub(rf"\1={MASK}", url)


def hidden(secret: str | None) -> str | None:
    """Return the mask in the place of a secret; None where there is none."""
    return None if secret is None else MASK


def masked_path(url: str) -> str:
    """Return scheme and host of a URL that lets in whoever has it; what is none (`off`) stays as it is."""

    def shown(found: re.Match[str]) -> str:
        if "@" in found["rest"] and ":" in found["authority"]:  # a password may go on there: which part is the host?
            return found["scheme"] + MASK
        host = found["authority"].rpartition("@")[2]
        return found["scheme"] + host + (f"/{MASK}" if found["rest"] else "")

    return _SERVER.sub(shown, url)


def redacted(text: object, url: str) -> str:
    """Return what a library says about a URL without its credentials: not the URL, the password, or parts of it."""
    shown = str(text).replace(url, masked(url))
    credentials = url.rpartition("@")[0]
    if _HAS_SCHEME.match(url):
        credentials = credentials.partition("//")[2]
    password = credentials.partition(":")[2] or credentials
    parts = re.split(r"[@/?#:\s]", password)
    parameters = [found.group().partition("=")[2] for found in _PARAMETER.finditer(url)]
    secrets = {secret for one in (credentials, password, *parts, *parameters) for secret in (one, unquote(one))}
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _FRAGMENT:
            shown = shown.replace(secret, MASK)
    return shown


def check_token(value: object) -> str | None:
    """Check that a bearer token is worth the name; empty is none. Raises `ConfigError`, which does not quote it."""
    if value is None or value == "":
        return None
    # Visible ASCII: what a field of HTTP carries unchanged.
    if isinstance(value, str) and len(value) >= SHORTEST_TOKEN and all("!" <= letter <= "~" for letter in value):
        return value
    raise ConfigError("", f"expected at least {SHORTEST_TOKEN} visible ASCII characters without spaces, as a secret")
