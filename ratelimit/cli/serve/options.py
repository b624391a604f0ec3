"""The options of `ratelimit serve`."""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

import typer

FORMATS: Final = ("text", "json", "off")

# What is served, and for whom.
Upstream: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="http://HOST:PORT, https://…, or unix:/PATH of a socket. Without one: the decision endpoint and the API.",
    ),
]
Action: TypeAlias = Annotated[str | None, typer.Option(help="With --quota: the name of a policy for every request.")]
Quotas: TypeAlias = Annotated[
    list[str] | None, typer.Option("--quota", metavar="QUOTA", help="As in 5/day; may be repeated.")
]
UserFrom: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(metavar="SOURCE", help="header:x-api-key, cookie:session, address; in order, may be repeated."),
]

# Where it listens.
Host: TypeAlias = Annotated[str, typer.Option(help="The address to listen on.")]
Port: TypeAlias = Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")]
Uds: TypeAlias = Annotated[str | None, typer.Option(metavar="PATH", help="Listen on a unix socket instead.")]
Admin: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Where health, metrics and reload are; off for nowhere. As configured."),
]
Workers: TypeAlias = Annotated[int, typer.Option(min=1, max=256, help="Processes on the one port.")]

# The proxy.
UpstreamHost: TypeAlias = Annotated[bool, typer.Option("--upstream-host", help="Send the upstream's own Host.")]
UpstreamCa: TypeAlias = Annotated[
    str, typer.Option(metavar="FILE", help="The certificates that an https upstream is trusted by; else the system's.")
]
ConnectTimeout: TypeAlias = Annotated[float, typer.Option(help="Seconds for a connection to the upstream.")]
FirstByteTimeout: TypeAlias = Annotated[float, typer.Option(help="Seconds for the upstream to begin its answer.")]
IdleTimeout: TypeAlias = Annotated[float, typer.Option(help="Seconds without a byte before an exchange is given up.")]

# The end, and what is said.
Linger: TypeAlias = Annotated[
    float, typer.Option(min=0, max=3600, help="Seconds at the end in which clients are told to leave.")
]
Grace: TypeAlias = Annotated[
    float, typer.Option(min=0, max=3600, help="Seconds at the end for requests that run, --linger included.")
]
AccessLog: TypeAlias = Annotated[str, typer.Option(metavar="FORMAT", help="text, json or off; on stdout.")]
JsonLine: TypeAlias = Annotated[
    bool, typer.Option("--json", help="The start-up line as one JSON document, the first line on stdout.")
]
