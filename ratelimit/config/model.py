"""`Config`: every setting, checked, with its default. And the shape of the same as keyword arguments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypedDict

from ratelimit.config.secrets import masked
from ratelimit.limiter.limiter import DEFAULT_DEADLINE, DEFAULT_DENIAL_CACHE
from ratelimit.policy import Exempt, Policy, UserFrom

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
