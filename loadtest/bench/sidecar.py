"""`ratelimit serve` beside nginx, HAProxy and the least that Python can do: CPU a request, requests a second, latency.

Every contender is a program of its own, on a core of its own where there are two, and busy when it is its turn. What it
has used is the kernel's account of its processes.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from math import ceil
from pathlib import Path
from statistics import median
from typing import Annotated, Final, NamedTuple

import typer

from loadtest.bench import requester
from loadtest.bench.builds import Build, absent
from loadtest.bench.report import AtOnce, BenchTarget, Findings, Rounds, Row, Seconds
from loadtest.bench.runner import Measured, difference, in_turns, ratio
from loadtest.bench.servers import Absent, MeasuredServer, haproxy, module, nginx, on_client_core, sidecar
from loadtest.bench.stub import stub_server
from ratelimit.testing.engines import free_port

NGINX, FLOOR, MEMORY = "nginx, limit_req", "the floor: httptools and nothing else", "ours"
LOGGED, DYNAMODB, AUTHZ, CHECK = "ours, usage log", "ours, DynamoDB (stub)", "ours, /v1/authz", "ours, /v1/check"
RLS, GRPC_FLOOR, GRPC_AIO = (
    "ours, RLS",
    "the floor of RLS: hpack and nothing else",
    "grpcio.aio, answers and nothing else",
)
COMPILED = "compiled: "
"""Before the name of one of ours."""
HAPROXY, USUAL = "HAProxy, stick table", "Starlette + httpx, no limits"

_SERVICE: Final = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
_FINISHED: Final = re.compile(r"finished in [\d.]+\w+, ([\d.]+) req/s")
_DONE: Final = re.compile(r"(\d+) done, (\d+) succeeded, (\d+) failed")
_ENVOY_CONFIG: Final = """domain: bench
descriptors:
  - key: user
    rate_limit: {unit: hour, requests_per_unit: 1000000000}
"""


class ServedContender(NamedTuple):
    """How it is started, and asked."""

    name: str
    start: Callable[[], AbstractContextManager[MeasuredServer]]
    load: requester.Load = requester.request_many
    floor: str = FLOOR
    paced: bool = False
    """Whether its latency at a steady rate is measured as well."""
    build: Build = ""


def run(
    rounds: Rounds = 5,
    seconds: Seconds = 2,
    at_once: AtOnce = 32,
    rate: Annotated[int, typer.Option(help="Requests a second where latencies are measured.")] = 1000,
) -> Findings:
    """The sidecar beside nginx, HAProxy and the least that Python can do; the decision endpoint; Envoy's service. One
    upstream, a program for each contender, one of them busy at a time."""
    notes = [f"requests by {requester.client()}, of RLS by h2load"]
    measured: dict[str, Measured] = {}
    p99: dict[str, list[float]] = {}
    with ExitStack() as exits:
        upstream = exits.enter_context(_upstream(notes))
        contenders = _contenders(upstream.port, exits.enter_context(stub_server()))
        lacking = absent(each.build for each in contenders)
        notes += lacking.values()
        servers: dict[str, tuple[ServedContender, MeasuredServer]] = {}
        for each in contenders:
            server = None if each.build in lacking else _start(each, exits, notes, min(1, seconds), at_once)
            if server is not None:
                servers[each.name], measured[each.name] = (each, server), Measured()
        for name in in_turns(servers, rounds):
            each, server = servers[name]
            try:
                turn = requester.turn_of(server, each.load, seconds=seconds, at_once=at_once)
                measured[name].turns.append(turn)
            except (RuntimeError, subprocess.SubprocessError) as error:
                notes.append(f"not measured: {name}: {error}")
                del servers[name], measured[name]
        paced = {"": upstream, **{name: server for name, (each, server) in servers.items() if each.paced}}
        for _ in range(rounds if rate else 0):
            for name, server in paced.items():
                p99.setdefault(name, []).append(requester.latencies(server.port, rate=rate, seconds=seconds)["p99"])
    rows = [Row(name, _figures(name, measured, servers[name][0].floor, p99)) for name in measured]
    return Findings(rows, _targets(measured), notes)


def _start(
    contender: ServedContender, exits: ExitStack, notes: list[str], seconds: float, at_once: int
) -> MeasuredServer | None:
    """Start it, and ask it for a while. Note why that does not go, and return None."""
    try:
        server = exits.enter_context(contender.start())
        contender.load(server.port, seconds=seconds, at_once=at_once)
    except (Absent, RuntimeError, OSError, subprocess.SubprocessError) as error:
        notes.append(f"not measured: {contender.name}: {error}")
        return None
    return server


def _contenders(upstream: int, dynamodb: str) -> list[ServedContender]:
    return [
        ServedContender(NGINX, lambda: nginx(upstream), paced=True),
        ServedContender(HAPROXY, lambda: haproxy(upstream), paced=True),
        ServedContender(FLOOR, lambda: module("loadtest.bench.proxy_floor", str(upstream)), paced=True),
        ServedContender(USUAL, lambda: module("loadtest.bench.asgi_server", "proxy", str(upstream))),
        ServedContender(GRPC_FLOOR, lambda: module("loadtest.bench.grpc_floor"), _load_grpc, GRPC_FLOOR),
        ServedContender(GRPC_AIO, lambda: module("loadtest.bench.grpc_aio", build="peers"), _load_grpc, GRPC_FLOOR,
                  build="peers"),
        *_ours(upstream, dynamodb, "", ""),
        *_ours(upstream, dynamodb, COMPILED, "compiled"),
    ]  # fmt: skip


def _ours(upstream: int, dynamodb: str, prefix: str, build: Build) -> list[ServedContender]:
    behind = ("--upstream", f"http://127.0.0.1:{upstream}")
    store = ("--store", f"dynamodb://bench?region=eu-west-1&endpoint={dynamodb}")
    authz, check = (partial(requester.request_many, shape=shape) for shape in ("authz", "check"))
    started = partial(sidecar, build=build)
    found = [
        ServedContender(MEMORY, lambda: started(*behind), paced=True),
        ServedContender(LOGGED, lambda: started(*behind, env={"RATELIMIT_USAGE": "memory"})),
        ServedContender(DYNAMODB, lambda: started(*behind, *store), paced=True),
        ServedContender(AUTHZ, started, authz),
        ServedContender(CHECK, started, check),
        ServedContender(RLS, lambda: _rls(build), _load_grpc, GRPC_FLOOR),
    ]
    return [each._replace(name=prefix + each.name, build=build) for each in found]


@contextmanager
def _upstream(notes: list[str]) -> Iterator[MeasuredServer]:
    with ExitStack() as exits:
        try:
            server = exits.enter_context(nginx())
        except Absent as error:
            notes.append(f"the upstream is a uvicorn: {error}")
            server = exits.enter_context(module("loadtest.bench.asgi_server", "app"))
        yield server


@contextmanager
def _rls(build: Build) -> Iterator[MeasuredServer]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "bench.yaml").write_text(_ENVOY_CONFIG)
        port = free_port()
        with sidecar("--grpc", f"127.0.0.1:{port}", "--envoy-config", folder, build=build) as server:
            yield MeasuredServer(port, server.pid)


def _load_grpc(port: int, *, seconds: float, at_once: int) -> tuple[float, int]:
    """32 calls at a time on each of two connections, whatever the connections of the others."""
    if shutil.which("h2load") is None:
        raise Absent("there is no h2load on the PATH (Debian's package nghttp2-client has it)")
    with tempfile.NamedTemporaryFile() as file:
        file.write(_message())
        file.flush()
        command = ["h2load", "-D", str(ceil(seconds)), "-c2", "-m32", "-t1", "-d", file.name]
        command += ["-H", "content-type: application/grpc", "-H", "te: trailers", f"http://127.0.0.1:{port}{_SERVICE}"]
        said = subprocess.run(
            on_client_core(command), capture_output=True, text=True, check=True, timeout=seconds + 60
        ).stdout
    rate, done = _FINISHED.search(said), _DONE.search(said)
    if rate is None or done is None or int(done[3]) or not int(done[2]):
        raise RuntimeError(said[-300:])
    return float(rate[1]), int(done[1])


def _message() -> bytes:
    """`RateLimitRequest(domain="bench", descriptors=[{entries: [user=alice]}])`, as gRPC frames it."""

    def field(number: int, value: bytes) -> bytes:
        return bytes((number << 3 | 2, len(value))) + value

    entry = field(1, b"user") + field(2, b"alice")
    message = field(1, b"bench") + field(2, field(1, entry))
    return b"\0" + struct.pack(">I", len(message)) + message


def _figures(
    name: str, measured: dict[str, Measured], floor: str, p99: dict[str, list[float]]
) -> dict[str, float | None]:
    added = None
    if name in p99:
        added = median(mine - theirs for mine, theirs in zip(p99[name], p99[""], strict=True))
    return {
        "requests/s": measured[name].median("per_second"),
        "CPU µs per request": measured[name].median("cpu_us"),
        "x CPU of nginx": None if floor == GRPC_FLOOR else _times(measured, name, NGINX),
        "x CPU of the floor": _times(measured, name, floor),
        "p99 added, ms": added,
    }


def _times(measured: dict[str, Measured], one: str, other: str) -> float | None:
    """Return how many times the CPU of the other; None where not both were measured."""
    return ratio(measured[one], measured[other], "cpu_us") if one in measured and other in measured else None


def _targets(measured: dict[str, Measured]) -> list[BenchTarget]:
    found = []
    for build in ("", COMPILED):
        found += [
            BenchTarget(
                f"CPU µs of a request, {build + name}", measured[build + name].median("cpu_us"), "at most", bound
            )
            for name, bound in ((MEMORY, 60), (AUTHZ, 30), (CHECK, 40), (RLS, 60))
            if build + name in measured
        ]
        for name, bound in ((build + LOGGED, 15), (build + DYNAMODB, 35)):
            if name in measured and build + MEMORY in measured:
                more = difference(measured[name], measured[build + MEMORY], "cpu_us")
                found.append(BenchTarget(f"CPU µs more than {build + MEMORY}, {name}", more, "at most", bound))
    for one, other, most in ((MEMORY, FLOOR, 3.0), (MEMORY, NGINX, 4.0), (COMPILED + MEMORY, FLOOR, 2.2)):
        if (times := _times(measured, one, other)) is not None:
            found.append(BenchTarget(f"times the CPU of {other}: {one}", times, "at most", most))
    if (times := _times(measured, GRPC_AIO, RLS)) is not None:
        found.append(BenchTarget(f"times the CPU of {RLS}: {GRPC_AIO}", times, "at least", 4))
    return found
