"""The command: from its options to a process that serves."""

# No postponed annotations in the commands: typer reads them when the program runs.
from functools import partial

from ratelimit.cli.output import INVALID, complain
from ratelimit.cli.serve import options
from ratelimit.cli.serve.banner import Banner
from ratelimit.cli.serve.source import Source
from ratelimit.cli.settings import ConfigOption, StoreOption
from ratelimit.serving import Address, Leaving, Serving, missing


def serve(
    upstream: options.Upstream = None,
    config: ConfigOption = None,
    store: StoreOption = None,
    action: options.Action = None,
    quota: options.Quotas = None,
    user_from: options.UserFrom = None,
    host: options.Host = "127.0.0.1",
    port: options.Port = 8080,
    uds: options.Uds = None,
    admin: options.Admin = None,
    workers: options.Workers = 1,
    upstream_host: options.UpstreamHost = False,
    upstream_ca: options.UpstreamCa = "",
    connect_timeout: options.ConnectTimeout = 5.0,
    first_byte_timeout: options.FirstByteTimeout = 60.0,
    idle_timeout: options.IdleTimeout = 300.0,
    linger: options.Linger = 2.0,
    grace: options.Grace = 15.0,
    access_log: options.AccessLog = "text",
    json: options.JsonLine = False,
) -> int:
    """Stand in front of a service in any language and check every request before it gets there; or, without
    `--upstream`, answer gateways and callers that ask.

    SIGTERM or SIGINT: leaves when what runs is finished and the usage log written; a second one, at once. SIGHUP: reads
    the configuration again. SIGUSR2: replaces the workers, one after the other.

    Examples:

        ratelimit serve --upstream http://127.0.0.1:8000 --config ratelimit.toml

        ratelimit serve --upstream http://127.0.0.1:8000 --action api --quota 5/day --user-from header:x-api-key
    """
    if lacking := missing():
        return complain(f"{', '.join(lacking)} not installed; pip install 'ratelimit-dynamodb[sidecar]'", INVALID)
    if access_log not in options.FORMATS:
        return complain(f"--access-log: unknown value {access_log!r}; use text, json or off", INVALID)
    from ratelimit.proxy import ProxySettings
    from ratelimit.sidecar import admin_address, sidecar

    source = Source(
        path=config,
        store=store,
        admin=admin,
        action=action,
        quota=tuple(quota or ()),
        user_from=tuple(user_from or ()),
        proxying=upstream is not None,
        workers=workers,
        uds=uds,
    )
    settings = source()
    proxy = ProxySettings(
        connect=connect_timeout,
        first_byte=first_byte_timeout,
        idle=idle_timeout,
        host="upstream" if upstream_host else "client",
        ca_file=upstream_ca,
    )
    make = partial(
        sidecar,
        source,
        upstream=upstream,
        settings=proxy,
        access_log=access_log,  # type: ignore[arg-type]
        host=None if uds else host,
    )
    make()  # What cannot be is said here, and not by every worker.
    place = admin_address(settings)
    serving = Serving(
        address=Address(host=host, port=port, uds=uds),
        admin=None if place is None else Address(host=place[0], port=place[1], option="admin"),
        workers=workers,
        leaving=Leaving(linger=linger, grace=grace),
    )
    return serving.run(make, source, Banner(config=settings, upstream=upstream, workers=workers, json=json))
