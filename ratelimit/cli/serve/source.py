"""`Source`: the configuration that `ratelimit serve` works by: the file's, and what the command line adds to it."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from ratelimit.config import Config
from ratelimit.errors import ConfigError
from ratelimit.http.addresses import NO_ADDRESS, warn_once
from ratelimit.http.surface import Surface
from ratelimit.policy import Policy
from ratelimit.wiring import load_checked

logger = logging.getLogger("ratelimit.serving")


@dataclass(kw_only=True)
class Source:
    """Call it to read the configuration afresh; raises `ConfigError` for one that would not do.

    A process that is given a copy has the last good configuration in it. Its first reading falls back on that: a worker
    that takes another's place starts, whatever is in the file by then.
    """

    path: Path | None = None
    store: str | None = None
    admin: str | None = None
    action: str | None = None
    quota: tuple[str, ...] = ()
    user_from: tuple[str, ...] = ()
    proxying: bool = False
    """Requests are limited as they come; without an upstream callers may also ask for a policy by its name."""
    workers: int = 1
    uds: str | None = None
    _good: Config | None = field(default=None, init=False)
    _first: bool = field(default=False, init=False)

    def __call__(self) -> Config:
        """What holds from now on."""
        first, self._first = self._first, False
        try:
            self._good = self._read()
        except ConfigError as error:
            if not first or self._good is None:
                raise
            logger.error("the last good configuration holds, as this one cannot: %s", error)
        return self._good

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _first=True)

    def _read(self) -> Config:
        config = self._with_user_from(self._with_policy(self._load()))
        if not any(policy.match or not self.proxying for policy in config.policies):
            problem = "no policy has a match" if config.policies else "there is no policy"
            how = "add --action api --quota 5/day, or --config; if that is meant, with quotas = 'unlimited'"
            raise ConfigError("", f"nothing is limited: {problem}; {how}")
        self._count_together(config)
        self._know_addresses(config)
        return config

    def _load(self) -> Config:
        """What the command line names goes over the environment too."""
        given = {name: value for name in ("store", "admin") if (value := getattr(self, name)) is not None}
        hidden = {f"RATELIMIT_{name.upper()}" for name in given}
        env = {name: value for name, value in os.environ.items() if name not in hidden}
        return load_checked(self.path, env=env, **given)

    def _with_policy(self, config: Config) -> Config:
        if not self.quota and not self.action:
            return config
        if not self.quota or not self.action:
            raise ConfigError("--quota" if self.action else "--action", "--action and --quota belong together")
        try:
            policy = Policy(self.action, "; ".join(self.quota), match="/**")
        except ConfigError as error:
            raise ConfigError("--action" if error.path == "name" else "--quota", error.problem) from None
        kept = tuple(each for each in config.policies if each.name != self.action)
        return replace(config, policies=(*kept, policy))

    def _with_user_from(self, config: Config) -> Config:
        if not self.user_from:
            return config
        try:
            Surface(user_from=self.user_from)
        except ConfigError as error:
            raise ConfigError("--user-from", error.problem) from None
        return replace(config, user_from=self.user_from)

    def _count_together(self, config: Config) -> None:
        """A limit that each worker counts for itself would be several times as high: never without being told."""
        if self.workers > 1 and config.store.startswith("memory://"):
            told = f"memory:// would count in each of the {self.workers} workers apart; use one, or a store they share"
            raise ConfigError("--workers", f"{told}: --store 'dynamodb://my-table?region=eu-west-1'")

    def _know_addresses(self, config: Config) -> None:
        """Who connects to a unix socket has no address, and so is one user with everybody else who has no other name;
        unless a proxy tells, which has to be believed."""
        if self.uds is None:
            return
        if isinstance(config.trusted_proxies, tuple) and config.trusted_proxies:
            raise ConfigError("trusted_proxies", NO_ADDRESS)
        if not config.trusted_proxies:
            warn_once(
                "at a unix socket nobody has an address, and all who have no other name are one user: "
                "let the proxy in front send X-Forwarded-For, and set trusted_proxies = 1"
            )
