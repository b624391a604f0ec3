"""`dynamodb://TABLE?region=...&endpoint=...&create=true`: the settings as one line."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from ratelimit.dynamodb.settings import Settings
from ratelimit.errors import ConfigError
from ratelimit.numerals import to_float, to_int

SCHEME: Final = "dynamodb"

_TRUE: Final = ("true", "1", "yes", "on")
_FALSE: Final = ("false", "0", "no", "off")
_UNENCODED: Final = "an & within it has to be written as %26, a ? as %3F and a # as %23"


def parse_url(url: str) -> Settings:
    """The settings that a store URL names; parameters are the fields of `Settings`. Raises `ConfigError`."""
    try:
        parts = urlsplit(url)
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise ConfigError("", f"not a store URL; {_HOW}") from None
    if parts.scheme != SCHEME:
        raise ConfigError("", f"a URL of DynamoDB starts with {SCHEME}://, not {parts.scheme}://")
    if "@" in url.partition("endpoint=")[0]:
        raise ConfigError("", "a store URL holds no credentials; use the standard AWS variables or a profile")
    if not parts.netloc:
        raise ConfigError("table", f"the URL names no table; {_HOW}")
    if parts.path not in ("", "/") or parts.fragment:
        raise ConfigError("", f"nothing may stand between the table and its parameters; {_HOW}")
    return Settings(table=parts.netloc, **_parameters(pairs))


def _parameters(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, text in pairs:
        if name not in _READERS:
            if any("@" in text for _, text in pairs):  # the name may be a part of a password
                raise ConfigError("endpoint", _UNENCODED)
            raise ConfigError(name, _unknown(name))
        if name in values:
            raise ConfigError(name, "is given twice")
        values[name] = _READERS[name](name, text)
    return values


def _unknown(name: str) -> str:
    near = get_close_matches(name, _READERS, n=1)
    return "unknown parameter; " + (f"did you mean {near[0]!r}?" if near else f"there are {', '.join(_READERS)}")


def _text(name: str, text: str) -> str:
    if not text:
        raise ConfigError(name, "is empty; leave it out, or give it a value")
    return text


def _boolean(name: str, text: str) -> bool:
    if text.lower() not in (*_TRUE, *_FALSE):
        raise ConfigError(name, f"must be true or false, not {text!r}")
    return text.lower() in _TRUE


def _whole(name: str, text: str) -> int:
    try:
        return to_int(text)
    except ValueError:
        raise ConfigError(name, f"must be a whole number, not {text!r}") from None


def _seconds(name: str, text: str) -> float:
    try:
        return to_float(text)
    except ValueError:
        raise ConfigError(name, f"must be a number of seconds, not {text!r}") from None


_HOW: Final = "write dynamodb://my-table?region=eu-west-1"
_READERS: Final[dict[str, Callable[[str, str], Any]]] = {
    "region": _text,
    "endpoint": _text,
    "create": _boolean,
    "consumed": _boolean,
    "fast": _boolean,
    "pool": _whole,
    "attempts": _whole,
    "connect_timeout": _seconds,
    "read_timeout": _seconds,
}
