"""`ratelimit serve`: the sidecar. A reverse proxy that checks every request before the upstream sees it."""

# No postponed annotations in the commands: typer reads them when the program runs.
from dataclasses import replace
from functools import partial
from typing import Annotated

import typer

from ratelimit.cli.output import INVALID, complain, note
from ratelimit.cli.settings import ConfigOption, StoreOption, load
from ratelimit.config import Config, masked
from ratelimit.errors import ConfigError
from ratelimit.http.surface import Surface
from ratelimit.policy import Policy
from ratelimit.serving import Address, Serving, missing
from ratelimit.wiring import proxy_app

_FORMATS = ("text", "json", "off")


def serve(
    upstream: Annotated[
        str | None, typer.Option(metavar="URL", help="http://HOST:PORT, https://…, or unix:/PATH of a socket.")
    ] = None,
    config: ConfigOption = None,
    store: StoreOption = None,
    action: Annotated[str | None, typer.Option(help="With --quota: the name of a policy for every request.")] = None,
    quota: Annotated[list[str] | None, typer.Option(help="As in 5/day; may be repeated.")] = None,
    user_from: Annotated[
        list[str] | None, typer.Option(help="header:x-api-key, cookie:session, address; in order, may be repeated.")
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8080,
    uds: Annotated[str | None, typer.Option(metavar="PATH", help="Listen on a unix socket instead.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes on the one port.")] = 1,
    upstream_host: Annotated[bool, typer.Option("--upstream-host", help="Send the upstream's own Host.")] = False,
    connect_timeout: Annotated[float, typer.Option(help="Seconds for a connection to the upstream.")] = 5.0,
    first_byte_timeout: Annotated[float, typer.Option(help="Seconds for the upstream to begin its answer.")] = 60.0,
    idle_timeout: Annotated[float, typer.Option(help="Seconds without a byte before an exchange is given up.")] = 300.0,
    grace: Annotated[int, typer.Option(min=0, help="Seconds that running requests have at the end.")] = 30,
    access_log: Annotated[str, typer.Option(help="text, json or off; on stdout.")] = "text",
) -> int:
    """Stand in front of a service in any language, and check every request before it gets there.

    Leaves at SIGTERM or SIGINT, when what runs is finished and the usage log written.

    Examples:

        ratelimit serve --upstream http://127.0.0.1:8000 --config ratelimit.toml

        ratelimit serve --upstream http://127.0.0.1:8000 --action api --quota 5/day --user-from header:x-api-key
    """
    if lacking := missing():
        return complain(f"{', '.join(lacking)} not installed; pip install 'ratelimit-dynamodb[sidecar]'", INVALID)
    if upstream is None:
        return complain("--upstream is needed: the URL of the service to stand in front of", INVALID)
    if access_log not in _FORMATS:
        return complain(f"--access-log: unknown value {access_log!r}; use text, json or off", INVALID)
    from ratelimit.proxy import ProxySettings

    settings = _limited(load(config, store), action, quota, user_from)
    _count_together(settings, workers)
    proxy = ProxySettings(
        connect=connect_timeout,
        first_byte=first_byte_timeout,
        idle=idle_timeout,
        host="upstream" if upstream_host else "client",
    )
    make = partial(proxy_app, settings, upstream, proxy, access_log=access_log)  # type: ignore[arg-type]
    make()  # What cannot be is said here, and not by every worker.
    serving = Serving(address=Address(host=host, port=port, uds=uds), workers=workers, grace=grace)
    return serving.run(make, lambda where: _announce(where, upstream, settings, workers))


def _limited(
    config: Config, action: str | None, quota: list[str] | None, user_from: list[str] | None
) -> Config:
    """With what the command line adds: a policy for every request, and where its user is found."""
    if quota or action:
        if not quota or not action:
            raise ConfigError("--quota" if action else "--action", "--action and --quota belong together")
        try:
            policy = Policy(action, "; ".join(quota), match="/**")
        except ConfigError as error:
            raise ConfigError("--action" if error.path == "name" else "--quota", error.problem) from None
        kept = tuple(each for each in config.policies if each.name != action)
        config = replace(config, policies=(*kept, policy))
    if user_from:
        try:
            Surface(user_from=user_from)
        except ConfigError as error:
            raise ConfigError("--user-from", error.problem) from None
        config = replace(config, user_from=tuple(user_from))
    if not any(policy.match for policy in config.policies):
        raise ConfigError("", "nothing is limited: no policy has a match; add --action api --quota 5/day, or --config")
    return config


def _count_together(config: Config, workers: int) -> None:
    """A limit that each worker counts for itself would be several times as high: never without being told."""
    if workers > 1 and config.store.startswith("memory://"):
        problem = f"memory:// would count in each of the {workers} workers apart; use one, or a store they share"
        raise ConfigError("--workers", f"{problem}: --store dynamodb://my-table?region=eu-west-1")


def _announce(where: str, upstream: str, config: Config, workers: int) -> None:
    rules = "; ".join(
        f"{policy.name} ({', '.join(map(str, policy.quotas)) or 'unlimited'})" for policy in config.policies
    )
    users = ", ".join(str(source) for source in config.user_from)
    processes = "1 worker" if workers == 1 else f"{workers} workers"
    typer.echo(
        f"ratelimit serves {where} in front of {upstream}: {rules}; users from {users}, else their address; "
        f"counting in {masked(config.store)}; {processes}",
        err=True,
    )
    if config.store.startswith("memory://"):
        note("memory:// is forgotten when this process ends")
