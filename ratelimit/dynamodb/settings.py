"""`Settings`: which table, where, and how patiently. Checked when built, so that a store never meets a bad one."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from ipaddress import ip_address
from typing import Any, Final, TypeAlias, TypedDict, cast
from urllib.parse import parse_qsl, urlsplit

from ratelimit.errors import ConfigError, nearest
from ratelimit.regions.regions import Regions, RegionsMode, is_region
from ratelimit.settings import boolean, http_url, number

DEFAULT_POOL: Final = 64

Server: TypeAlias = tuple[str, int]
"""Host and port."""

_TABLE = re.compile(r"[A-Za-z0-9_.-]{3,255}")
_AMAZON = (".amazonaws.com", ".amazonaws.com.cn", ".api.aws", ".api.amazonwebservices.com.cn")


class StoreOptions(TypedDict, total=False):
    """The settings by name, for those who write them as keyword arguments."""

    table: str
    region: str | None
    endpoint: str | None
    create: bool
    timelines: bool
    consumed: bool
    fast: bool
    pool: int
    attempts: int
    connect_timeout: float
    read_timeout: float
    regions: tuple[str, ...]
    mode: RegionsMode | None
    shares: tuple[int, ...]
    failover: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A table and the way to it. Raises `ConfigError` naming the bad setting.

    `region`           by default what `AWS_REGION`, `AWS_DEFAULT_REGION` or the AWS profile says.
    `endpoint`         the URL of another server that speaks DynamoDB; by default what `AWS_ENDPOINT_URL_DYNAMODB`,
                       `AWS_ENDPOINT_URL` or the AWS profile says, and else Amazon's own.
    `create`           create the table at `open`, if there is none.
    `timelines`        it needs the index of timelines too: a configuration with `timeline = true` in a policy says so.
    `consumed`         ask for the consumed capacity of every call, and add it up in the store's `stats`.
    `fast`             send checks by the fast lane; off, through aiobotocore like everything else (tenfold the CPU).
                       `RATELIMIT_FAST_LANE=off` turns it off for a whole process.
    `pool`             connections at most; more calls than that at once wait for one another.
    `attempts`         tries per call, where a retry cannot count twice.
    `connect_timeout`  seconds; so is `read_timeout`, the longest silence while waiting for an answer.
    `regions`          those that count, of a table with replicas: `eu-west-1,us-east-1`.
    `mode`             how a quota holds in all of them: `home`, `sum`, `strong` or `split`.
    `shares`           of each of them, for `split`: `2,1`; equal ones where there are none.
    `failover`         whether the users of a lost region may be moved to the others, for `home`.
    """

    table: str
    region: str | None = None
    endpoint: str | None = None
    create: bool = False
    timelines: bool = False
    consumed: bool = False
    fast: bool = True
    pool: int = DEFAULT_POOL
    attempts: int = 3
    connect_timeout: float = 1.0
    read_timeout: float = 2.0
    regions: tuple[str, ...] = ()
    mode: RegionsMode | None = None
    shares: tuple[int, ...] = ()
    failover: bool = False

    def __post_init__(self) -> None:
        if type(self.table) is not str or not _TABLE.fullmatch(self.table):
            raise ConfigError("table", f"{self.table!r} is no table name: 3 to 255 of letters, digits, '_', '-', '.'")
        if self.region is not None and not is_region(self.region):
            raise ConfigError("region", f"{self.region!r} is not a region; write it like 'eu-west-1'")
        if self.endpoint is not None:
            _check_endpoint(self.endpoint)
        if self.regions or self.mode is not None or self.shares or self.failover:
            _check_regions(self)
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "bool" and type(value) is not bool:
                raise ConfigError(field.name, f"must be true or false, not {value!r}")
            if field.type == "int" and (type(value) is not int or value < 1):
                raise ConfigError(field.name, f"must be a whole number of at least 1, not {value!r}")
            if field.type == "float" and (type(value) not in (int, float) or not 0 < value < math.inf):
                raise ConfigError(field.name, f"must be a number of seconds above 0, not {value!r}")


def check_one_region(settings: Settings, what: str) -> None:
    """Raise `ConfigError` for users who are counted in several regions, for `what` goes to one alone."""
    if settings.mode not in (None, "strong") and len(settings.regions) > 1:
        raise ConfigError("regions", f"{what} one region, and users are counted in {', '.join(settings.regions)}")


def _check_regions(settings: Settings) -> None:
    try:
        Regions(
            cast(RegionsMode, settings.mode), settings.regions, settings.region,
            shares=settings.shares, failover=settings.failover,
        )  # fmt: skip
    except ConfigError as error:
        path = error.path.replace("all", "regions").replace("here", "region")
        raise ConfigError(path, error.problem) from None


def is_loopback(endpoint: str | None) -> bool:
    """Return whether the endpoint is on this machine, where an engine for development listens."""
    parts = http_url(endpoint or "")
    host = (parts and parts.hostname) or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def is_amazon(endpoint: str) -> bool:
    parts = http_url(endpoint)
    return ((parts and parts.hostname) or "").endswith(_AMAZON)


def server_of(endpoint: str) -> Server | None:
    """Return whom the endpoint leads to, with one name for all names of this machine; None where it is no URL."""
    parts = http_url(endpoint)
    if parts is None:
        return None
    host = "localhost" if is_loopback(endpoint) else parts.hostname or ""
    return host, parts.port or (443 if parts.scheme == "https" else 80)


def without_userinfo(endpoint: str) -> str:
    return re.sub(r"//.*@", "//", endpoint, flags=re.DOTALL)


def _check_endpoint(endpoint: str) -> None:
    parts = http_url(endpoint)
    if parts is None:
        raise ConfigError("endpoint", "is not a URL; write it like 'http://localhost:4566'")
    if "@" in parts.netloc:
        raise ConfigError("endpoint", "must not hold credentials; use the standard AWS variables or a profile")


SCHEME: Final = "dynamodb"

_UNENCODED: Final = "an & within it has to be written as %26, a ? as %3F and a # as %23"


def parse_url(url: str) -> Settings:
    """Return the settings that a store URL names, `dynamodb://TABLE?region=...&create=true`. Raise `ConfigError`."""
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
        if not text:
            raise ConfigError(name, "is empty; leave it out, or give it a value")
        values[name] = _READERS[name](text)
    return values


def _unknown(name: str) -> str:
    return "unknown parameter; " + nearest(name, _READERS, f"there are {', '.join(_READERS)}")


_HOW: Final = "write dynamodb://my-table?region=eu-west-1"
# What is odd stays as it is, for `Settings` to complain about.
_BY_TYPE: Final[dict[str, Callable[[str], Any]]] = {
    "str | None": str,
    "RegionsMode | None": str,
    "tuple[str, ...]": lambda text: tuple(text.split(",")),
    "tuple[int, ...]": lambda text: tuple(map(number, text.split(","))),
    "bool": boolean,
    "int": number,
    "float": number,
}
_READERS: Final = {field.name: _BY_TYPE[str(field.type)] for field in fields(Settings) if field.name != "table"}
