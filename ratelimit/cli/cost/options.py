"""The options of `ratelimit cost`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, TypeAlias

import typer

_WORKLOAD: Final = "The month"
_SPARED: Final = "What is spared"
_SERVICE: Final = "The sidecar"
_PRICES: Final = "Prices"

Checks: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="N", help="Checks, the refused included: 50M, 1.5k.", rich_help_panel=_WORKLOAD),
]
Denied: TypeAlias = Annotated[str, typer.Option(metavar="SHARE", help="Of them: 20%.", rich_help_panel=_WORKLOAD)]
Users: TypeAlias = Annotated[str, typer.Option(metavar="N", help="That come.", rich_help_panel=_WORKLOAD)]
Actions: TypeAlias = Annotated[str, typer.Option(metavar="N", help="Of each user.", rich_help_panel=_WORKLOAD)]
Windows: TypeAlias = Annotated[
    str, typer.Option(metavar="N", help="In a policy: more cost storage, no writes.", rich_help_panel=_WORKLOAD)
]
Events: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="N", help="Of the usage log; by default as --log says.", rich_help_panel=_WORKLOAD),
]
Log: TypeAlias = Annotated[
    str, typer.Option(metavar="MODE", help="all, allowed, denied or none.", rich_help_panel=_WORKLOAD)
]
LogSample: TypeAlias = Annotated[
    str, typer.Option(metavar="SHARE", help="Of the refused, those logged.", rich_help_panel=_WORKLOAD)
]
Days: TypeAlias = Annotated[str, typer.Option(metavar="N", help="That an event is kept.", rich_help_panel=_WORKLOAD)]
EventBytes: TypeAlias = Annotated[str, typer.Option(metavar="N", help="Of an event.", rich_help_panel=_WORKLOAD)]
Reads: TypeAlias = Annotated[
    str, typer.Option(metavar="N", help="Peeks, users and plans, queries.", rich_help_panel=_WORKLOAD)
]
Cached: TypeAlias = Annotated[
    str,
    typer.Option(metavar="SHARE", help="Of the refused, those the denial cache knew.", rich_help_panel=_SPARED),
]
Coalesced: TypeAlias = Annotated[
    str, typer.Option(metavar="SHARE", help="Of the admitted, those in another's write.", rich_help_panel=_SPARED)
]
Leased: TypeAlias = Annotated[
    str, typer.Option(metavar="SHARE", help="Of the admitted, those of leases.", rich_help_panel=_SPARED)
]
Lease: TypeAlias = Annotated[str, typer.Option(metavar="N", help="Units of a lease.", rich_help_panel=_SPARED)]
Tasks: TypeAlias = Annotated[
    str, typer.Option(metavar="N", help="On Fargate, behind a load balancer.", rich_help_panel=_SERVICE)
]
Vcpu: TypeAlias = Annotated[str, typer.Option(metavar="N", help="Of a task.", rich_help_panel=_SERVICE)]
Memory: TypeAlias = Annotated[str, typer.Option(metavar="GB", help="Of a task.", rich_help_panel=_SERVICE)]
Region: TypeAlias = Annotated[str, typer.Option(metavar="NAME", rich_help_panel=_PRICES)]
Prices: TypeAlias = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Instead of the file that comes along.", rich_help_panel=_PRICES),
]
Peak: TypeAlias = Annotated[
    str, typer.Option(metavar="TIMES", help="The busiest minutes, by the average.", rich_help_panel=_PRICES)
]
Utilisation: TypeAlias = Annotated[
    str, typer.Option(metavar="SHARE", help="That auto scaling aims at.", rich_help_panel=_PRICES)
]
FromMetrics: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Of a running sidecar's admin listener, instead of --checks and its like."),
]
