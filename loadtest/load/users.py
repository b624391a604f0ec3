"""Locust's side: users that keep to one schedule, a shape that ends with it, and a user for any app."""

from __future__ import annotations

import json
import socket
import time
from random import randrange
from typing import Any, ClassVar, Final, TypeAlias

import gevent
import msgspec
from geventhttpclient import HTTPClient
from locust import FastHttpUser, LoadTestShape, User, constant_throughput, task
from locust.env import Environment

from ratelimit.numerals import to_int

from ..plan import MARK, SERIES, LoadPlan, Outcome, RequestSample, SampleBatch, Series
from .schedule import Draw, Schedule, Ticket

LEAD: Final = 1.0
"""Seconds in which the users are spawned, before the schedule begins."""
_COARSE: Final = 0.001
_OVER: Final = 3600.0


class LoadSession:
    """One run in one process of Locust: its schedule, its clock and its samples.

    The clock is `time.perf_counter`, which nothing sets; zero is the moment when measuring begins.
    """

    def __init__(self, environment: Environment, plan: LoadPlan, worker: int) -> None:
        self.plan = plan
        self.series = SERIES[plan.group]
        self.draw = Draw(plan, worker)
        self.schedule = Schedule(
            self.series, rate=plan.rate, warm_up=plan.warm_up, duration=plan.duration, worker=worker,
            workers=plan.workers, seed=plan.seed,
        )  # fmt: skip
        self._rows: list[list[Any]] = []
        self.over = False
        """Set before Locust ends its users: one that wakes up in that moment would be ended in the middle of a request,
        of which nobody would hear."""
        self._request = environment.events.request
        self._zero = time.perf_counter() + LEAD + plan.warm_up

    def now(self) -> float:
        """Seconds since measuring began."""
        return time.perf_counter() - self._zero

    def batch(self) -> SampleBatch:
        """What there is to tell since the last time."""
        rows, self._rows = self._rows, []
        return SampleBatch(rows, self.schedule.left)

    def record(self, sample: RequestSample, problem: str) -> None:
        """Keep it for our report and, unless it warmed up, tell Locust. A refusal is an answer as good as any."""
        self._rows.append(list(sample))
        if sample.at >= 0:
            self._request.fire(
                request_type=self.plan.group,
                name=self.series[sample.series].name,
                response_time=sample.latency / 1000,
                response_length=0,
                exception=RuntimeError(problem) if sample.outcome == "failed" else None,
                context={},
            )


# How a user asks: an order to the driver on a socket, or a request over HTTP. Both on gevent, kept alive.

_TIMEOUT_S: Final = 30.0
_LETTERS: Final[dict[str, Outcome]] = {"a": "allowed", "r": "refused", "f": "failed"}

Asked: TypeAlias = tuple[Outcome, int | None, str]
"""The outcome; the microseconds it took by the server's own clock, where that is known; what failed."""


class OrderClient:
    """A line to the driver, and one back: `a 134`, allowed within 134 µs."""

    def __init__(self, address: str) -> None:
        self._address = _split_address(address)
        self._socket: socket.socket | None = None

    def ask(self, series: Series, user: str) -> Asked:
        try:
            letter, took, problem = self._exchange(f"{series.action or '-'} {user}\n".encode()).split(" ", 2)
        except (OSError, ValueError) as error:
            self._socket = None
            return "failed", None, repr(error)
        return _LETTERS[letter], int(took), problem

    def _exchange(self, line: bytes) -> str:
        if self._socket is None:
            self._socket = socket.create_connection(self._address, timeout=_TIMEOUT_S)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(line)
        answer = b""
        while not answer.endswith(b"\n"):
            if not (more := self._socket.recv(4096)):
                raise ConnectionResetError("the driver hung up")
            answer += more
        return answer.decode()[:-1]


class RequestClient:
    """A request on a connection of its own; what its status and, of a decision, its body say."""

    def __init__(self, address: str) -> None:
        host, port = _split_address(address)
        self._http = HTTPClient(
            host, port, concurrency=1, connection_timeout=_TIMEOUT_S, network_timeout=_TIMEOUT_S,
            disable_ipv6=":" not in host,
        )  # fmt: skip

    def ask(self, series: Series, user: str) -> Asked:
        method, _, path = series.path.partition(" ")
        headers = {"x-user": user}
        if series.body:
            headers["content-type"] = "application/json"
        try:
            response = self._http.request(
                method, path, body=series.body.replace("{user}", user).encode(), headers=headers
            )
            body = bytes(response.read())
        except (OSError, ValueError) as error:
            self._http.close()
            return "failed", None, repr(error)
        return _outcome(response.status_code, body, is_decision=bool(series.body))


def _split_address(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _outcome(status: int, body: bytes, *, is_decision: bool) -> Asked:
    if status == 429:
        return "refused", None, ""
    if not 200 <= status < 300:
        return "failed", None, f"status {status}"
    if is_decision:
        answer: dict[str, Any] = json.loads(body)
        if answer["reason"] == "unavailable":
            return "failed", None, "unavailable"
        return ("allowed" if answer["allowed"] else "refused"), None, ""
    return "allowed", None, ""


class PacedUser(User):
    """Waits for the intended start of its next request, makes it, and takes another."""

    session: ClassVar[LoadSession]

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._ticket: Ticket | None = None
        self._taken = 0.0
        self._clients: dict[str, RequestClient | OrderClient] = {}

    def wait_time(self) -> float:
        """Locust sleeps for so long, and ends a user who sleeps at once when the run is over."""
        self._taken = self.session.now()
        self._ticket = self.session.schedule.take(self._taken)
        if self._ticket is None:
            return _OVER
        # gevent's timers come up to a millisecond late: it wakes before that, and `_until` waits for the rest.
        return max(0.0, self._ticket.at - self.session.now() - _COARSE)

    @task
    def make(self) -> None:
        """The request of the ticket; the first time there is none yet."""
        ticket, self._ticket = self._ticket, None
        if ticket is None:
            return
        session = self.session
        series = session.series[ticket.series]
        client = self._clients.get(series.name)
        if client is None:
            kind = RequestClient if series.path else OrderClient
            client = self._clients[series.name] = kind(session.plan.targets[series.target])
        user = session.draw.user(ticket.series)
        self._until(ticket.at)
        if session.over:
            return
        sent = session.now()
        outcome, took, problem = client.ask(series, user)
        self._record(ticket, user, sent, outcome, took, problem)

    def _until(self, at: float) -> None:
        while self.session.now() < at:
            gevent.sleep(0)

    def _record(self, ticket: Ticket, user: str, sent: float, outcome: Outcome, took: int | None, problem: str) -> None:
        ended = self.session.now()
        ready = max(ticket.at, self._taken)
        sample = RequestSample(
            series=ticket.series,
            user=user,
            at=round(ticket.at * 1e6),
            wait=round((ready - ticket.at) * 1e6),
            lag=round((sent - ready) * 1e6),
            latency=round((ended - ticket.at) * 1e6),
            service=round((ended - sent) * 1e6) if took is None else took,
            outcome=outcome,
        )
        self.session.record(sample, problem)


class ConstantRate(LoadTestShape):
    """All users at once, for as long as the schedule goes: the rate is the schedule's, whatever their number."""

    cut_short: ClassVar[bool] = False
    use_common_options = True  # or Locust warns of `--users`, which goes with `AppUser`

    @classmethod
    def end(cls) -> None:
        """Before its time: what is under way is finished."""
        cls.cut_short = True

    def tick(self) -> tuple[int, float] | None:
        assert self.runner is not None
        plan = plan_of(self.runner.environment)
        if self.cut_short or self.get_run_time() >= LEAD + plan.warm_up + plan.duration + 0.5:
            return None
        return plan.users, float(plan.users)


def has_plan(environment: Any) -> bool:
    """Whether this is `ratelimit loadtest run`, and not somebody's own Locust."""
    return bool(environment.parsed_options.plan)


def plan_of(environment: Any) -> LoadPlan:
    """The plan that the command line carries; on a worker, the master's."""
    return msgspec.json.decode(environment.parsed_options.plan, type=LoadPlan)


# A user for any app.

_REFUSED: Final = 429


class AppUser(FastHttpUser):
    """Makes one request a second, or asks again as soon as it has an answer where that takes longer.

    A 429 is an answer as good as any: it has a line of its own in Locust's statistics.
    """

    host = "http://127.0.0.1:8000"
    wait_time = constant_throughput(1)

    @staticmethod
    def add_options(parser: Any) -> None:
        """Those of Locust's command line and of its web page."""
        parser.add_argument("--request", default="GET /", help="Method and path.")
        parser.add_argument(
            "--user-header", default="", help="The header that names the user, such as x-api-key; none by default."
        )
        parser.add_argument("--distinct-users", type=to_int, default=10, help="How many users there are to draw from.")

    def on_start(self) -> None:
        """Read the options, which the web page may have changed."""
        options: Any = self.environment.parsed_options
        self._method, _, self._path = options.request.strip().rpartition(" ")
        self._user_header: str = options.user_header
        self._distinct_users: int = max(1, options.distinct_users)

    @task
    def ask(self) -> None:
        headers = {self._user_header: f"{MARK}{randrange(self._distinct_users)}"} if self._user_header else {}
        method, path = self._method or "GET", self._path
        with self.client.request(method, path, headers=headers, catch_response=True) as response:
            if response.status_code == _REFUSED:
                response.request_meta["name"] = f"{path} (refused)"
                response.success()
