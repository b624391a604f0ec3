"""What everybody in a run agrees on: the groups, their series of requests, the plan of one group's load, and what came
of each request on its way from a generator to the report."""

from __future__ import annotations

import signal
from typing import Any, Final, Literal, NamedTuple, TypeAlias, get_args

import msgspec

Group: TypeAlias = Literal["checks", "middleware", "sidecar", "usage"]
Verb: TypeAlias = Literal["order", "request"]
Population: TypeAlias = Literal["one", "few", "many", "zipf", "fresh"]
Outcome: TypeAlias = Literal["allowed", "refused", "failed"]
"""`failed`: no answer, or none that says yes or no. Whether it was counted is not known."""

GROUPS: Final[tuple[Group, ...]] = get_args(Group)
USERS_OF: Final[dict[Population, int]] = {"one": 1, "few": 10, "many": 200, "zipf": 10_000, "fresh": 0}
"""How many users there are to draw from; `fresh` is somebody new each time."""
CUT_SHORT: Final = signal.SIGUSR1
"""Tells Locust to end before its time. Not SIGINT, which Python raises in whatever request is just being made."""
MARK: Final = "lt-"
"""Every user of every load test begins with it: what else is in a table is not ours."""


class Trouble(Exception):
    """The run cannot be; the message says why, and what to do. `status` is the exit status."""

    def __init__(self, message: str, *, status: int = 2) -> None:
        self.status = status
        super().__init__(message)


class Series(msgspec.Struct, frozen=True):
    """One kind of request, with figures of its own."""

    name: str
    target: str
    """The server that is asked: its name in `LoadPlan.targets`."""
    action: str | None
    """What it spends, for the books; None where nothing is limited."""
    path: str = ""
    """With the HTTP method, `{user}` for the user; empty for an order to the driver."""
    body: str = ""
    users: Population = "many"
    over: str | None = None
    """The series that it is compared with: the same request without what is measured."""
    as_series: str = ""
    """Whose users they are, to read what those have done; by default its own."""
    weight: int = 1
    meter: str = ""
    """Whose writes are its: by default the target's."""


class LoadPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One group's load. Handed to Locust as JSON, and by its master to the workers."""

    run: str
    group: Group
    rate: float
    """Requests a second of all workers together."""
    users: int
    duration: float
    """Seconds that are measured; before it come `warm_up` seconds that are not."""
    warm_up: float
    workers: int
    seed: int
    targets: dict[str, str]
    """Servers by name, as `HOST:PORT`."""


SERIES: Final[dict[Group, tuple[Series, ...]]] = {
    "checks": (
        Series("nothing", "driver", None),
        Series("allowed", "driver", "allowed", meter="allowed"),
        Series("denied", "driver", "denied", users="few", meter="denied"),
        Series("hot key", "driver", "hot", users="one", meter="hot"),
        Series("many users (Zipf)", "driver", "zipf", users="zipf", meter="zipf"),
        Series("four windows", "driver", "windows", meter="windows"),
        Series("cold keys", "driver", "cold", users="fresh", meter="cold"),
    ),
    "middleware": (
        Series("bare app", "bare", None, "GET /hello"),
        Series("with the middleware", "limited", "hello", "GET /hello", over="bare app"),
    ),
    "sidecar": (
        Series("upstream alone", "bare", None, "GET /hello"),
        Series("through the proxy", "proxy", "hello", "GET /hello", over="upstream alone"),
        Series("/v1/authz", "decision", "hello", "GET /v1/authz/hello"),
        Series("/v1/check", "decision", "hello", "POST /v1/check", '{"user":"{user}","action":"hello"}'),
    ),
    "usage": (
        Series("checked and logged", "limited", "hello", "GET /hello", weight=4),
        Series("recorded", "limited", "order", "POST /orders", weight=2),
        Series("events read back", "limited", None, "GET /events", as_series="checked and logged"),
        Series("totals read back", "limited", None, "GET /totals", as_series="recorded"),
    ),
}

QUOTAS: Final = {
    "allowed": "1000000000/day",
    "denied": "3/day",
    "hot": "1000000000/day",
    "zipf": "30/minute",
    "windows": "10000/second; 1000000/minute; 100000000/hour; 1000000000/day",
    "cold": "1000000000/day",
    "hello": "1000000000/day",
    "order": "1000000000/day",
}
"""By action."""


class RequestSample(NamedTuple):
    """One request. Times are whole microseconds."""

    series: int
    user: str
    at: int
    """Intended start, since measuring began; below 0 while warming up."""
    wait: int
    """Until one of the users was free to send it."""
    lag: int
    """Until it was on its way after that: the generator's own lateness."""
    latency: int
    """From the intended start to the answer."""
    service: int
    """From the sending to the answer; for a check, what the driver's own clock says of the check alone."""
    outcome: Outcome


class SampleBatch(NamedTuple):
    """What a generator has to tell since the last time."""

    rows: list[list[Any]]
    """Samples, as JSON and msgpack carry them."""
    left: int
    """Tickets that would be left if it ended now."""
