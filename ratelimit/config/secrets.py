"""What must not be shown: credentials in a URL, a URL that is one itself, and tokens."""

from __future__ import annotations

import re
from typing import Final

from ratelimit.errors import ConfigError

MASK: Final = "***"
SHORTEST_TOKEN: Final = 16

# `user:password@`, also inside a parameter (`endpoint=http://user:password@host`, percent-encoded or not).
_CREDENTIALS = re.compile(r"(?<=//)[^/?#&]*@")
_ENCODED_CREDENTIALS = re.compile(r"(?<=%2F%2F)(?:(?!%2F|%3F|%23)[^/?#&])*(?:%40|@)", re.IGNORECASE)
_PARAMETER = re.compile(
    r"(?<=[?&])([^=&#]*(?:secret|password|passwd|token|credential|key_id|access_key|api_key)[^=&#]*)=[^&#]*",
    re.IGNORECASE,
)

_SERVER = re.compile(r"(?P<scheme>\w+://)(?:[^/?#\\]*@)?(?P<host>[^/?#\\]*)(?P<rest>.*)", re.DOTALL)


def masked(url: str) -> str:
    """The URL with every credential in it replaced, fit for a terminal or a log."""
    url = _CREDENTIALS.sub(f"{MASK}@", url)
    url = _ENCODED_CREDENTIALS.sub(f"{MASK}@", url)
    return _PARAMETER.sub(rf"\1={MASK}", url)


def masked_path(url: str) -> str:
    """Scheme and host, for a URL that lets in whoever has it; what is none (`off`) stays as it is."""
    return _SERVER.sub(lambda found: found["scheme"] + found["host"] + (f"/{MASK}" if found["rest"] else ""), url)


def check_token(value: object) -> str | None:
    """A bearer token that is worth the name; empty for none. Raises `ConfigError`, which does not quote it."""
    if value is None or value == "":
        return None
    # Visible ASCII: what a field of HTTP carries unchanged.
    if isinstance(value, str) and len(value) >= SHORTEST_TOKEN and all("!" <= letter <= "~" for letter in value):
        return value
    raise ConfigError("", f"expected at least {SHORTEST_TOKEN} visible ASCII characters without spaces, as a secret")
