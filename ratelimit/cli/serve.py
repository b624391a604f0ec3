"""`ratelimit serve`: its options, the configuration that they make with the file, and the start-up line."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
import typer

from ratelimit.cli.options import ConfigOption, StoreOption, as_options, decimal, spread, whole
from ratelimit.cli.output import INVALID, complain, note
from ratelimit.config import Config, masked
from ratelimit.config.settings import MAX_PORT
from ratelimit.errors import ConfigError
from ratelimit.factory import load_checked
from ratelimit.http.addresses import NO_ADDRESS, warn_once
from ratelimit.http.policy_check import SurfaceOptions
from ratelimit.policy import Policy
from ratelimit.server.address import Address
from ratelimit.server.serve import Server, ShutdownTimeouts, missing_packages

if TYPE_CHECKING:
    from ratelimit.server.upstream import ProxySettings

logger = logging.getLogger("ratelimit.serving")
FOR_GRPC: Final = ("hpack", "yaml")
ADMIN_PORT: Final = 8081


@dataclass(kw_only=True)
class ServeConfig:
    """The options that make a configuration. Call it to read that afresh; raises `ConfigError` for one that would not
    do.

    A process that is given a copy has the last good configuration in it. Its first reading falls back on that: a worker
    that takes another's place starts, whatever is in the file by then.
    """

    upstream: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="http://HOST:PORT, https://…, or unix:/PATH of a socket. "
            "Without one: the decision endpoint and the API.",
        ),
    ] = None
    config: ConfigOption = None
    store: StoreOption = None
    action: Annotated[str | None, typer.Option(help="With --quota: the name of a policy for every request.")] = None
    quota: Annotated[
        list[str] | None, typer.Option("--quota", metavar="QUOTA", help="As in 5/day; may be repeated.")
    ] = None
    user_from: Annotated[
        list[str] | None,
        typer.Option(metavar="SOURCE", help="header:x-api-key, cookie:session, address; in order, may be repeated."),
    ] = None
    uds: Annotated[str | None, typer.Option(metavar="PATH", help="Listen on a unix socket instead.")] = None
    admin: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where health, metrics and reload are; off for nowhere. As configured."),
    ] = None
    grpc: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Serve Envoy's rate limit service there, or at unix:/PATH; by --envoy-config."
        ),
    ] = None
    envoy_config: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="The YAML files of envoyproxy/ratelimit: limits beside the policies."),
    ] = None
    workers: Annotated[int, typer.Option(**whole(1, 256), help="Processes on the one port.")] = 1
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
        config = self._with_admin(self._with_user_from(self._with_policy(self._load())))
        if self.grpc is not None and not config.envoy_config:
            raise ConfigError("--grpc", "no limit is known: add --envoy-config DIR, with envoyproxy/ratelimit's YAML")
        if not config.envoy_config and not any(policy.match or self.upstream is None for policy in config.policies):
            problem = "no policy has a match" if config.policies else "there is no policy"
            how = "add --action api --quota 5/day, or --config; if that is meant, with quotas = 'unlimited'"
            raise ConfigError("", f"nothing is limited: {problem}; {how}")
        self._count_together(config)
        self._know_addresses(config)
        return config

    def _load(self) -> Config:
        """What the command line names goes over the environment too."""
        names = ("store", "admin", "envoy_config")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        hidden = {f"RATELIMIT_{name.upper()}" for name in given}
        env = {name: value for name, value in os.environ.items() if name not in hidden}
        return load_checked(self.config, env=env, **given)

    def _with_policy(self, config: Config) -> Config:
        if not self.quota and not self.action:
            return config
        if not self.quota or not self.action:
            raise ConfigError("--quota" if self.action else "--action", "--action and --quota belong together")
        with as_options(name="--action", quotas="--quota"):
            policy = Policy(self.action, "; ".join(self.quota), match="/**")
        kept = tuple(each for each in config.policies if each.name != self.action)
        return replace(config, policies=(*kept, policy))

    def _with_admin(self, config: Config) -> Config:
        """Envoy's service has the port that envoyproxy/ratelimit has: the admin listener's own, by default."""
        if self.grpc is None or config.admin != Config().admin or grpc_address(self.grpc).port != ADMIN_PORT:
            return config
        return replace(config, admin=f"127.0.0.1:{ADMIN_PORT + 1}")

    def _with_user_from(self, config: Config) -> Config:
        if not self.user_from:
            return config
        with as_options():
            SurfaceOptions(user_from=self.user_from)
        return replace(config, user_from=tuple(self.user_from))

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


@dataclass(frozen=True)
class UpstreamOptions:
    """How the upstream is asked."""

    upstream_host: Annotated[bool, typer.Option("--upstream-host", help="Send the upstream's own Host.")] = False
    upstream_ca: Annotated[
        str,
        typer.Option(metavar="FILE", help="The certificates that an https upstream is trusted by; else the system's."),
    ] = ""
    connect_timeout: Annotated[float, typer.Option(**decimal(), help="Seconds for a connection to the upstream.")] = 5.0
    first_byte_timeout: Annotated[
        float, typer.Option(**decimal(), help="Seconds for the upstream to begin its answer.")
    ] = 60.0
    idle_timeout: Annotated[
        float, typer.Option(**decimal(), help="Seconds without a byte before an exchange is given up.")
    ] = 300.0

    def settings(self) -> ProxySettings:
        """Return them as the proxy takes them."""
        from ratelimit.server.upstream import ProxySettings

        return ProxySettings(
            connect=self.connect_timeout, first_byte=self.first_byte_timeout, idle=self.idle_timeout,
            host="upstream" if self.upstream_host else "client", ca_file=self.upstream_ca,
        )  # fmt: skip


@spread
def serve(
    *,
    source: ServeConfig,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(**whole(0, 65535), help="0 takes any that is free.")] = 8080,
    exchange: UpstreamOptions,
    linger: Annotated[
        float, typer.Option(**decimal(0, 3600), help="Seconds at the end in which clients are told to leave.")
    ] = 2.0,
    grace: Annotated[
        float, typer.Option(**decimal(0, 3600), help="Seconds at the end for requests that run, --linger included.")
    ] = 15.0,
    access_log: Annotated[Literal["text", "json", "off"], typer.Option(help="On stdout.")] = "text",
    json: Annotated[
        bool, typer.Option("--json", help="The start-up line as one JSON document, the first line on stdout.")
    ] = False,
) -> int:
    """Stand in front of a service in any language and check every request before it gets there; or, without
    `--upstream`, answer gateways and callers that ask.

    SIGTERM or SIGINT: leaves when what runs is finished and the usage log written; a second one, at once. SIGHUP: reads
    the configuration again. SIGUSR2: replaces the workers, one after the other.

    Examples:

        ratelimit serve --upstream http://127.0.0.1:8000 --config ratelimit.toml

        ratelimit serve --upstream http://127.0.0.1:8000 --action api --quota 5/day --user-from header:x-api-key

        ratelimit serve --grpc 127.0.0.1:8081 --envoy-config /etc/ratelimit/config
    """
    lacking, extra = missing_packages(), "sidecar"
    if not lacking and (source.grpc or source.envoy_config):
        lacking, extra = missing_packages(FOR_GRPC), "envoy"
    if lacking:
        return complain(f"{', '.join(lacking)} not installed; pip install 'ratelimit-dynamodb[{extra}]'", INVALID)
    from ratelimit.factory import admin_address
    from ratelimit.server.factory import sidecar

    settings = source()
    make = partial(
        sidecar, source, upstream=source.upstream, settings=exchange.settings(), access_log=access_log,
        host=None if source.uds else host,
        file=str(source.config) if source.config else os.environ.get("RATELIMIT_CONFIG", "").strip() or None,
    )  # fmt: skip
    make()  # What cannot be is said here, and not by every worker.
    place = admin_address(settings)
    serving = Server(
        address=Address(host=host, port=port, uds=source.uds),
        admin=None if place is None else Address(host=place[0], port=place[1], option="admin"),
        grpc=None if source.grpc is None else grpc_address(source.grpc),
        workers=source.workers,
        shutdown=ShutdownTimeouts(linger=linger, grace=grace),
    )
    banner = Banner(config=settings, upstream=source.upstream, workers=source.workers, json=json)
    return serving.run(make, source, banner)


def grpc_address(text: str) -> Address:
    """Read where gRPC is to be served. Raises `ConfigError`."""
    if text.startswith("unix:") and text[5:]:
        return Address(uds=text[5:], port=0, option="--grpc")
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not port.isascii() or len(port) > 5 or int(port) > MAX_PORT:
        raise ConfigError("--grpc", f"expected an address as in 127.0.0.1:8081, or unix:/PATH, not {text!r}")
    return Address(host=host.strip("[]"), port=int(port), option="--grpc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Banner:
    """Call it with where the app, the admin listener and gRPC are, once they are."""

    config: Config
    upstream: str | None
    workers: int
    json: bool

    def __call__(self, where: str, admin: str | None, grpc: str | None = None) -> None:
        """Say it: readable on stderr, or for a program on stdout."""
        grpc = None if grpc is None else grpc.removeprefix("http://")
        if self.json:
            typer.echo(msgspec.json.encode(self._document(where, admin, grpc)).decode())
        else:
            typer.echo(self._line(where, admin, grpc), err=True)
        if self.config.store.startswith("memory://"):
            note("memory:// is forgotten when this process ends")

    def _line(self, where: str, admin: str | None, grpc: str | None) -> str:
        rules = "; ".join(f"{policy.name} ({', '.join(_quotas(policy))})" for policy in self.config.policies)
        what = (
            f"in front of {masked(self.upstream)}" if self.upstream else "decisions at /v1/authz and the API beside it"
        )
        if self.config.envoy_config:
            where_grpc = f" at {grpc}" if grpc else ""
            limits = f"Envoy's rate limit service{where_grpc}: {self._limits()} of {self.config.envoy_config}"
            rules = f"{rules}; {limits}" if rules else limits
        users = ", ".join(dict.fromkeys((*self._users(), "address")))
        return (
            f"ratelimit serves {where} {what}: {rules}; users from {users}; "
            f"counting in {masked(self.config.store)}; {'admin at ' + admin if admin else 'no admin listener'}; "
            f"{'1 worker' if self.workers == 1 else f'{self.workers} workers'}"
        )

    def _limits(self) -> str:
        count = len(self.config.envoy_config.policies)
        return "1 limit" if count == 1 else f"{count} limits"

    def _document(self, where: str, admin: str | None, grpc: str | None) -> dict[str, object]:
        return {
            "listening": where,
            "upstream": None if self.upstream is None else masked(self.upstream),
            "policies": {policy.name: _quotas(policy) for policy in self.config.policies},
            "user_from": self._users(),
            "store": masked(self.config.store),
            "admin": admin,
            "grpc": grpc,
            "workers": self.workers,
            "pid": os.getpid(),
        }

    def _users(self) -> list[str]:
        return [str(source) for source in self.config.user_from]


def _quotas(policy: Policy) -> list[str]:
    return [str(quota) for quota in policy.quotas] or ["unlimited"]
