"""The settings there are: for each, how a value is checked, and how it is written in an environment variable."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypedDict, get_args

from ratelimit.config.problems import unknown
from ratelimit.config.secrets import check_token, masked
from ratelimit.errors import ConfigError, InvalidQuota
from ratelimit.limiter.limiter import DEFAULT_DEADLINE, DEFAULT_DENIAL_CACHE
from ratelimit.numerals import to_float, to_int
from ratelimit.policy import Exempt, Policy, UserFrom
from ratelimit.quota import Quota

# `Config`: every setting, checked, with its default. And the shape of the same as keyword arguments.

HeadersMode: TypeAlias = Literal["draft", "legacy", "both", "none"]


@dataclass(frozen=True, slots=True)
class Config:
    """What `load_config` understood. Its `repr` shows no credentials."""

    store: str = "memory://"
    """Where the counters live: `memory://`, or `dynamodb://TABLE?region=…`."""
    mirror: str = "off"
    """Another store, as a URL, that is written to as well while stores are changed; it decides nothing."""
    deadline: float = DEFAULT_DEADLINE
    """Seconds a check may wait for the store; then the policy's `on_unavailable` answers."""
    denial_cache: float = DEFAULT_DENIAL_CACHE
    """Seconds for which a refusal may be repeated from memory, unless it could change sooner; 0 asks every time."""
    usage: str = "off"
    """The usage log: `memory` keeps what is not in the table yet in this process; `journal:DIR` on the disk as well."""
    directory: bool = False
    """Whether users' own quotas and plans, in the same table, go over the policies'."""
    headers: HeadersMode = "draft"
    """`draft` (`RateLimit`, `RateLimit-Policy`), `legacy` (`X-RateLimit-*`), `both` or `none`."""
    user_from: tuple[UserFrom, ...] = ("user", "address")
    """Where to look for the user, in order."""
    trusted_proxies: int | tuple[str, ...] = 0
    """How many proxies in front are ours, or their networks; 0 leaves `X-Forwarded-For` unread."""
    ipv6_prefix: int = 64
    """How many bits of an IPv6 address are one subscriber's, and so one user: 32 to 128."""
    exempt: tuple[Exempt, ...] = ()
    """Requests never checked, whatever the policy."""
    api_token: str | None = None
    """Asked of the native API's callers; needed where it listens beyond loopback."""
    admin: str = "127.0.0.1:8081"
    """Where `ratelimit serve` shows health and metrics and takes reloads; `off` for nowhere."""
    admin_token: str | None = None
    """Asked of the admin listener's callers, but for its health; needed where it listens beyond loopback."""
    user_hash_key: str | None = None
    """A secret, under which users are hashed before they are stored; without it they are stored as they are."""
    alert_webhook: str = "off"
    """Where `ratelimit serve` posts alerts (`alert_at`): a URL, or `off`."""
    alert_secret: str | None = None
    """What those requests are signed with."""
    policies: tuple[Policy, ...] = ()
    """The named rules, in the order in which they are checked."""

    def __repr__(self) -> str:
        policies = ", ".join(policy.name for policy in self.policies)
        return f"Config(store={masked(self.store)!r}, deadline={self.deadline}, policies=[{policies}])"


class SettingArgs(TypedDict, total=False):
    """The settings as keyword arguments. `policies`: `Policy` values, or tables by name, as in the file."""

    store: str
    mirror: str
    deadline: float
    denial_cache: float
    usage: str
    directory: bool
    headers: HeadersMode
    user_from: UserFrom | Iterable[UserFrom]
    trusted_proxies: int | Iterable[str]
    ipv6_prefix: int
    exempt: Exempt | Iterable[Exempt]
    api_token: str
    admin: str
    admin_token: str
    user_hash_key: str
    alert_webhook: str
    alert_secret: str
    policies: Iterable[Policy] | Mapping[str, Mapping[str, Any]]


MIN_DEADLINE: Final = 0.001
MAX_SECONDS: Final = 60.0
MAX_PORT: Final = 65_535
_URL = re.compile(r"https?://[^\s/?#]+[^\s#]*")
_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^\s:\[\]/]+):(?P<port>\d{1,5})", re.ASCII)


def number(text: str) -> object:
    """A number if it is one; otherwise the text itself, for the check to complain about."""
    for read in (to_int, to_float):
        try:
            return read(text)
        except ValueError:
            continue
    return text


def items(text: str) -> list[str]:
    """`a, b` as a list."""
    return [item.strip() for item in text.split(",") if item.strip()]


def numbers(text: str) -> list[object]:
    """`0.8, 1.0` as a list."""
    return [number(item) for item in items(text)]


def patterns(text: str) -> list[str]:
    """`POST /a, GET,HEAD /b`: a comma may also part methods, so what holds no path belongs to the next that does."""
    found: list[str] = []
    methods = ""
    for item in items(text):
        if "/" in item:
            found.append(methods + item)
            methods = ""
        else:
            methods += f"{item},"
    return found + items(methods)


def number_or_items(text: str) -> object:
    """`2`, or `10.0.0.0/8, 192.168.0.0/16`."""
    value = number(text)
    return items(text) if isinstance(value, str) else value


def store(value: object) -> str:
    """A store's URL; which schemes there are is for `wiring` to say."""
    if isinstance(value, str) and "://" in value:
        return value
    shown = masked(value) if isinstance(value, str) else value
    raise ConfigError("", f"expected a URL, as in 'memory://' or 'dynamodb://my-table?region=eu-west-1', not {shown!r}")


def mirror(value: object) -> str:
    """`off`, or as `store`."""
    return value if value == "off" and isinstance(value, str) else store(value)


def deadline(value: object) -> float:
    """Seconds; none at all would refuse to wait for any answer."""
    return _seconds(value, MIN_DEADLINE)


def denial_cache(value: object) -> float:
    """Seconds; 0 remembers nothing."""
    return _seconds(value, 0.0)


def _seconds(value: object, least: float) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= MAX_SECONDS:
        return float(value)
    raise ConfigError("", f"expected seconds from {least:g} to {MAX_SECONDS:g}, such as 0.25, not {value!r}")


def truth(value: object) -> bool:
    """Yes or no."""
    if isinstance(value, bool):
        return value
    raise ConfigError("", f"expected true or false, not {value!r}")


def truth_from_text(text: str) -> object:
    """`true`, `on`, `1` and their opposites; otherwise the text itself, for the check to complain about."""
    words = {"true": True, "on": True, "1": True, "yes": True, "false": False, "off": False, "0": False, "no": False}
    return words.get(text.strip().lower(), text)


def usage(value: object) -> str:
    """`off`, `memory`, or `journal:` and a directory."""
    if isinstance(value, str) and (value in ("off", "memory") or (value.startswith("journal:") and value[8:].strip())):
        return value
    raise ConfigError("", f"expected 'off', 'memory' or 'journal:/var/lib/ratelimit', not {value!r}")


def headers(value: object) -> str:
    """One of `HeadersMode`."""
    if value in get_args(HeadersMode):
        return str(value)
    raise ConfigError("", f"unknown value {value!r}; use one of {', '.join(map(repr, get_args(HeadersMode)))}")


def sources(value: object) -> tuple[object, ...]:
    """Where to look for the user: at least one place."""
    found = several(value)
    if not found:
        raise ConfigError("", "names nobody; write ['user', 'address'], or leave it out")
    return found


def several(value: object) -> tuple[object, ...]:
    """Texts or functions of the request, one or many; their meaning is checked where they are used."""
    if isinstance(value, str) or callable(value):
        value = [value]
    if not isinstance(value, Iterable) or isinstance(value, dict):
        raise ConfigError("", f"expected text or a list of text, not {value!r}")
    found = tuple(value)
    for position, item in enumerate(found):
        if not (isinstance(item, str) and item.strip()) and not callable(item):
            raise ConfigError(f"[{position}]", f"expected text, not {item!r}")
    return found


def proxies(value: object) -> int | tuple[object, ...]:
    """A number of hops, or networks."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value >= 0:
            return value
    elif isinstance(value, str | list | tuple):
        return several(value)
    raise ConfigError("", f"expected how many proxies there are, or their networks as in ['10.0.0.0/8'], not {value!r}")


def ipv6_prefix(value: object) -> int:
    """Bits."""
    if type(value) is int and 32 <= value <= 128:
        return value
    raise ConfigError("", f"expected 32 to 128 bits, such as 64 or 56, not {value!r}")


def listener(value: object) -> str:
    """`HOST:PORT`, or `off`."""
    if isinstance(value, str) and value == "off":
        return value
    if isinstance(value, str) and (found := _ADDRESS.fullmatch(value)) and int(found["port"]) <= MAX_PORT:
        return value
    raise ConfigError("", f"expected 'off', or an address as in '127.0.0.1:8081' or '[::1]:8081', not {value!r}")


def webhook(value: object) -> str:
    """A URL of HTTP, or `off`. Raises `ConfigError`, which does not quote it: whoever has it may post there."""
    if isinstance(value, str) and (value == "off" or _URL.fullmatch(value)):
        return value
    raise ConfigError("", "expected 'off', or a URL as in 'https://example.com/alerts'")


def quotas(value: object) -> object:
    """The file's tables (`{limit = 5, window = "day"}`) as `Quota`; every other form is left to `Policy`."""
    if isinstance(value, dict):
        return _quota(value, "")
    if isinstance(value, list | tuple) and any(isinstance(item, dict) for item in value):
        return [_quota(item, f"[{at}]") if isinstance(item, dict) else item for at, item in enumerate(value)]
    return value


def _quota(table: dict[str, Any], path: str) -> Quota:
    for name in table:
        if name not in ("limit", "window", "burst"):
            raise unknown(f"{path}.{name}" if path else name, name, ("limit", "window", "burst"))
    for name in ("limit", "window"):
        if name not in table:
            raise ConfigError(path, f"{name} is missing; write {{limit = 5, window = 'day'}}")
    if not isinstance(table["window"], str):
        where = f"{path}.window" if path else "window"
        raise ConfigError(where, f"expected text such as 'day', not {table['window']!r}")
    try:
        return Quota(table["limit"], table["window"], table.get("burst"))
    except InvalidQuota as error:
        raise ConfigError(path, str(error)) from error


class Setting(NamedTuple):
    """`check` gives the value to use, or raises `ConfigError` relative to the setting; `from_text` never raises."""

    check: Callable[[object], object]
    from_text: Callable[[str], object] = str


def _as_is(value: object) -> object:
    """`Policy` checks its own values."""
    return value


SETTINGS: Final[dict[str, Setting]] = {
    "store": Setting(store),
    "mirror": Setting(mirror),
    "deadline": Setting(deadline, number),
    "denial_cache": Setting(denial_cache, number),
    "usage": Setting(usage),
    "directory": Setting(truth, truth_from_text),
    "headers": Setting(headers),
    "user_from": Setting(sources, items),
    "trusted_proxies": Setting(proxies, number_or_items),
    "ipv6_prefix": Setting(ipv6_prefix, number),
    "exempt": Setting(several, patterns),
    "api_token": Setting(check_token),
    "admin": Setting(listener),
    "admin_token": Setting(check_token),
    "user_hash_key": Setting(check_token),
    "alert_webhook": Setting(webhook),
    "alert_secret": Setting(check_token),
}

# Of a policy's settings, those that a file or a variable writes in a way of its own.
_WRITTEN: Final[dict[str, Setting]] = {
    "quotas": Setting(quotas),
    "match": Setting(_as_is, patterns),
    "cost": Setting(_as_is, number),
    "user_from": Setting(_as_is, items),
    "exempt": Setting(_as_is, patterns),
    "lease": Setting(_as_is, number),
    "alert_at": Setting(_as_is, numbers),
    "log_sample": Setting(_as_is, number),
}

POLICY_SETTINGS: Final[dict[str, Setting]] = {
    field.name: _WRITTEN.get(field.name, Setting(_as_is)) for field in fields(Policy) if field.name != "name"
}
