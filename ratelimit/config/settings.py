"""`Config`: every setting of the configuration, one field each. And the shape of the same as keyword arguments."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, TypedDict

from ratelimit.config.envoy import NO_RULES, EnvoyRules, read_envoy_rules
from ratelimit.config.secrets import check_token, hidden, masked, masked_path
from ratelimit.directory import DEFAULT_DEADLINE as DEFAULT_DIRECTORY_DEADLINE
from ratelimit.errors import ConfigError
from ratelimit.limiter.limiter import DEFAULT_DEADLINE, DEFAULT_DENIAL_CACHE
from ratelimit.policy import POLICY_SETTINGS, Exempt, Policy, UserFrom
from ratelimit.regions.regions import Regions, read_regions, regions_of_text, shown_regions
from ratelimit.settings import (
    boolean,
    http_url,
    items,
    number,
    number_or_items,
    one_of,
    patterns,
    setting,
    settings_of,
    texts,
    texts_or_functions,
    truth,
)

HeadersMode: TypeAlias = Literal["draft", "legacy", "both", "none"]
MIN_DEADLINE: Final = 0.001
MAX_SECONDS: Final = 60.0
MAX_PORT: Final = 65_535
DEFAULT_MAX_BODY_BYTES: Final = 1_048_576
MAX_BODY_BYTES: Final = 2**30
_URL = re.compile(r"https?://[^\s/?#]+[^\s#]*")
_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^\s:\[\]/]+):(?P<port>\d{1,5})", re.ASCII)


def _store(value: object) -> str:
    """A store's URL; which schemes there are is for `open_store` to say."""
    if isinstance(value, str) and "://" in value:
        return value
    shown = masked(value) if isinstance(value, str) else value
    raise ConfigError("", f"expected a URL, as in 'memory://' or 'dynamodb://my-table?region=eu-west-1', not {shown!r}")


def _mirror(value: object) -> str:
    """`off`, or as `store`."""
    return value if value == "off" and isinstance(value, str) else _store(value)


def _seconds(*, least: float) -> Callable[[object], float]:
    def check(value: object) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= MAX_SECONDS:
            return float(value)
        raise ConfigError("", f"expected seconds from {least:g} to {MAX_SECONDS:g}, such as 0.25, not {value!r}")

    return check


def _usage(value: object) -> str:
    """`off`, `memory`, or `journal:` and a directory."""
    if isinstance(value, str) and (value in ("off", "memory") or (value.startswith("journal:") and value[8:].strip())):
        return value
    raise ConfigError("", f"expected 'off', 'memory' or 'journal:/var/lib/ratelimit', not {value!r}")


def _sources(value: object) -> tuple[object, ...]:
    """Where to look for the user: at least one place."""
    found = texts_or_functions(value)
    if not found:
        raise ConfigError("", "names nobody; write ['user', 'address'], or leave it out")
    return found


def _proxies(value: object) -> int | tuple[object, ...]:
    """A number of hops, or networks."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value >= 0:
            return value
    elif isinstance(value, str | list | tuple):
        return texts(value)
    raise ConfigError("", f"expected how many proxies there are, or their networks as in ['10.0.0.0/8'], not {value!r}")


def check_ipv6_prefix(value: object) -> int:
    """Bits."""
    if type(value) is int and 32 <= value <= 128:
        return value
    raise ConfigError("", f"expected 32 to 128 bits, such as 64 or 56, not {value!r}")


def check_max_body_bytes(value: object) -> int:
    """A bound on what is held of one request."""
    if type(value) is int and 0 < value <= MAX_BODY_BYTES:
        return value
    raise ConfigError("", f"expected 1 to {MAX_BODY_BYTES} bytes, such as {DEFAULT_MAX_BODY_BYTES}, not {value!r}")


def _listener(value: object) -> str:
    """`HOST:PORT`, or `off`."""
    if isinstance(value, str) and value == "off":
        return value
    if isinstance(value, str) and (found := _ADDRESS.fullmatch(value)) and int(found["port"]) <= MAX_PORT:
        return value
    raise ConfigError("", f"expected 'off', or an address as in '127.0.0.1:8081' or '[::1]:8081', not {value!r}")


def _webhook(value: object) -> str:
    """A URL of HTTP, or `off`. Raises `ConfigError`, which does not quote it: whoever has it may post there."""
    if isinstance(value, str) and (value == "off" or (_URL.fullmatch(value) and http_url(value))):
        return value
    raise ConfigError("", "expected 'off', or a URL as in 'https://example.com/alerts'")


@dataclass(frozen=True, slots=True)
class Config:
    """What `load_config` understood. Its `repr` shows no credentials."""

    enabled: bool = setting(True, truth, boolean)
    """`false` lets everything pass, unasked and unlogged, and keeps away from the store: for tests and development."""
    store: str = setting("memory://", _store, shown=masked)
    """Where the counters live: `memory://`, or `dynamodb://TABLE?region=…`."""
    mirror: str = setting("off", _mirror, shown=masked)
    """Another store, as a URL, that is written to as well while stores are changed; it decides nothing."""
    regions: Regions | None = setting(None, read_regions, regions_of_text, shown=shown_regions)
    """Of a table with replicas: how a quota holds in all regions (`mode`: `home`, `sum`, `strong` or `split`), which
    those are (`all`), and which is this one (`here`; by default the store's, or `AWS_REGION`); or `off`."""
    deadline: float = setting(DEFAULT_DEADLINE, _seconds(least=MIN_DEADLINE), number)
    """Seconds a check may wait for the store; then the policy's `on_unavailable` answers."""
    denial_cache: float = setting(DEFAULT_DENIAL_CACHE, _seconds(least=0.0), number)
    """Seconds for which a refusal may be repeated from memory, unless it could change sooner; 0 asks every time."""
    usage: str = setting("off", _usage)
    """The usage log: `memory` keeps what is not in the table yet in this process; `journal:DIR` on the disk as well."""
    directory: bool = setting(False, truth, boolean)
    """Whether users' own quotas and plans, in the same table, go over the policies'."""
    directory_deadline: float = setting(DEFAULT_DIRECTORY_DEADLINE, _seconds(least=MIN_DEADLINE), number)
    """Seconds a check may wait until the user's plan is known, all reads together; then what was known before holds, or
    else the policy's own quotas."""
    headers: HeadersMode = setting("draft", one_of(HeadersMode))
    """`draft` (`RateLimit`, `RateLimit-Policy`), `legacy` (`X-RateLimit-*`), `both` or `none`."""
    user_from: tuple[UserFrom, ...] = setting(("user", "address"), _sources, items)
    """Where to look for the user, in order."""
    trusted_proxies: int | tuple[str, ...] = setting(0, _proxies, number_or_items)
    """How many proxies in front are ours, or their networks; 0 leaves `X-Forwarded-For` unread."""
    ipv6_prefix: int = setting(64, check_ipv6_prefix, number)
    """How many bits of an IPv6 address are one subscriber's, and so one user: 32 to 128."""
    exempt: tuple[Exempt, ...] = setting((), texts_or_functions, patterns)
    """Requests never checked, whatever the policy."""
    max_body_bytes: int = setting(DEFAULT_MAX_BODY_BYTES, check_max_body_bytes, number)
    """How much of a body is read for functions that ask for it; a larger one is answered with 413."""
    metrics: bool = setting(False, truth, boolean)
    """Whether an app shows its metrics in `prometheus_client`'s registry; `ratelimit serve` has them on its `admin`."""
    api_token: str | None = setting(None, check_token, shown=hidden)
    """Asked of the native API's callers; needed where it listens beyond loopback."""
    admin: str = setting("127.0.0.1:8081", _listener)
    """Where `ratelimit serve` shows health and metrics and takes reloads; `off` for nowhere."""
    admin_token: str | None = setting(None, check_token, shown=hidden)
    """Asked of the admin listener's callers, but for its health; needed where it listens beyond loopback."""
    admin_read_token: str | None = setting(None, check_token, shown=hidden)
    """Admits to see all that the admin listener shows, and to change nothing; needs an `admin_token` beside it."""
    user_hash_key: str | None = setting(None, check_token, shown=hidden)
    """A secret, under which users are hashed before they are stored; without it they are stored as they are."""
    alert_webhook: str = setting("off", _webhook, shown=masked_path)
    """Where `ratelimit serve` posts alerts (`alert_at`): a URL, or `off`."""
    alert_secret: str | None = setting(None, check_token, shown=hidden)
    """What those requests are signed with."""
    envoy_config: EnvoyRules = setting(NO_RULES, read_envoy_rules, shown=str)
    """Of `ratelimit serve --grpc`: the directory of envoyproxy/ratelimit's YAML files, whose limits hold beside the
    policies; or `off`."""
    envoy_all_or_nothing: bool = setting(False, truth, boolean)
    """Whether a call of Envoy's service that is refused counts nowhere; else its other descriptors are counted."""
    policies: tuple[Policy, ...] = ()
    """The named rules, in the order in which they are checked."""

    def __repr__(self) -> str:
        policies = ", ".join(policy.name for policy in self.policies)
        return f"Config(store={masked(self.store)!r}, deadline={self.deadline}, policies=[{policies}])"


class SettingArgs(TypedDict, total=False):
    """The settings as keyword arguments. `policies`: `Policy` values, or tables by name, as in the file."""

    enabled: bool
    store: str
    mirror: str
    regions: Regions | Mapping[str, Any] | Literal["off"]
    deadline: float
    denial_cache: float
    usage: str
    directory: bool
    directory_deadline: float
    headers: HeadersMode
    user_from: UserFrom | Iterable[UserFrom]
    trusted_proxies: int | Iterable[str]
    ipv6_prefix: int
    exempt: Exempt | Iterable[Exempt]
    max_body_bytes: int
    metrics: bool
    api_token: str
    admin: str
    admin_token: str
    admin_read_token: str
    user_hash_key: str
    alert_webhook: str
    alert_secret: str
    envoy_config: str | Path
    envoy_all_or_nothing: bool
    policies: Iterable[Policy] | Mapping[str, Mapping[str, Any]]


SETTINGS: Final = settings_of(Config)


def document(config: Config) -> dict[str, Any]:
    """Return every setting by its name, fit for JSON and TOML: without what is not set, with what is secret masked."""
    found = {name: each.shown(getattr(config, name)) for name, each in SETTINGS.items()}
    found["policies"] = {policy.name: policy_document(policy) for policy in config.policies}
    return {name: value for name, value in found.items() if value is not None}


def policy_document(policy: Policy) -> dict[str, Any]:
    """Return every setting of a policy, as `document` does."""
    found = {name: each.shown(getattr(policy, name)) for name, each in POLICY_SETTINGS.items()}
    return {name: value for name, value in found.items() if value is not None}
