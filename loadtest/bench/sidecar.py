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
from math import ceil
from pathlib import Path
from statistics import median
from typing import Annotated, Final, NamedTuple, TypeAlias

import typer

from loadtest.bench import builds, peers_home, requester
from loadtest.bench.engines import Absent
from loadtest.bench.pace import latencies
from loadtest.bench.report import BenchReport, Row, Target, bench_report, conclude
from loadtest.bench.servers import Server, haproxy, module, nginx, on_client_core, program, sidecar
from loadtest.bench.stub import stub_server
from ratelimit.testing.engines import free_port

Load: TypeAlias = Callable[[int, float, int], "tuple[float, int]"]
"""Asks a port for so many seconds with so many connections: requests a second, and how many."""

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


class Contender(NamedTuple):
    """How it is started, and asked."""

    name: str
    start: Callable[[], AbstractContextManager[Server]]
    load: Load
    floor: str
    paced: bool = False
    """Whether its latency at a steady rate is measured as well."""


class _Turn(NamedTuple):
    per_second: float
    cpu_us: float


def command(
    rounds: Annotated[int, typer.Option(help="Turns of each contender.")] = 5,
    seconds: Annotated[int, typer.Option(help="Length of one turn, in whole seconds.")] = 2,
    at_once: Annotated[int, typer.Option(help="Connections.")] = 32,
    rate: Annotated[int, typer.Option(help="Requests a second where latencies are measured.")] = 1000,
    json: Annotated[Path | None, typer.Option(help="Keep the figures in this file.")] = None,
) -> None:
    """The sidecar beside nginx, HAProxy and the least that Python can do; the decision endpoint; Envoy's service."""
    conclude(run(rounds=rounds, seconds=seconds, at_once=at_once, rate=rate), json)


def run(*, rounds: int, seconds: float, at_once: int = 32, rate: int = 1000) -> BenchReport:
    """One upstream, a program for each contender, one of them busy at a time."""
    notes = [f"requests by {'wrk' if requester.has_wrk() else 'our own client (there is no wrk)'}, of RLS by h2load"]
    turns: dict[str, list[_Turn]] = {}
    p99: dict[str, list[float]] = {}
    with ExitStack() as exits:
        upstream = exits.enter_context(_upstream(notes))
        servers: dict[str, tuple[Contender, Server]] = {}
        for each in _contenders(upstream.port, exits.enter_context(stub_server()), notes):
            try:
                server = exits.enter_context(each.start())
                each.load(server.port, min(1, seconds), at_once)
            except (Absent, RuntimeError, OSError, subprocess.SubprocessError) as error:
                notes.append(f"not measured: {each.name}: {error}")
                continue
            servers[each.name] = each, server
            turns[each.name] = []
        for number in range(rounds):
            for name in [*reversed(servers)] if number % 2 else [*servers]:
                try:
                    turns[name].append(_turn(*servers[name], seconds, at_once))
                except (RuntimeError, subprocess.SubprocessError) as error:
                    notes.append(f"not measured: {name}: {error}")
                    del servers[name], turns[name]
        paced = {"": upstream, **{name: server for name, (each, server) in servers.items() if each.paced}}
        for _ in range(rounds if rate else 0):
            for name, server in paced.items():
                p99.setdefault(name, []).append(latencies(server.port, rate=rate, seconds=seconds)["p99"])
    rows = [Row(name, _figures(name, turns, servers[name][0].floor, p99)) for name in turns]
    options = f"--rounds {rounds} --seconds {seconds} --at-once {at_once} --rate {rate}"
    return bench_report("sidecar", rows, _targets(turns), notes, arguments=options)


def _contenders(upstream: int, dynamodb: str, notes: list[str]) -> list[Contender]:
    found = [
        _proxy(NGINX, lambda: nginx(upstream), paced=True),
        _proxy(HAPROXY, lambda: haproxy(upstream), paced=True),
        _proxy(FLOOR, lambda: module("loadtest.bench.proxy_floor", str(upstream)), paced=True),
        _proxy(USUAL, lambda: module("loadtest.bench.asgi_server", "proxy", str(upstream))),
        Contender(GRPC_FLOOR, lambda: module("loadtest.bench.grpc_floor"), _load_grpc, GRPC_FLOOR),
        Contender(GRPC_AIO, _grpc_aio, _load_grpc, GRPC_FLOOR),
        *_ours(upstream, dynamodb, "", {}),
    ]
    if uncompiled := builds.compiled():
        notes.append(f"not measured: the compiled build: {uncompiled}")
    else:
        found += _ours(upstream, dynamodb, COMPILED, builds.environment())
    return found


def _ours(upstream: int, dynamodb: str, build: str, env: dict[str, str]) -> list[Contender]:
    behind = ("--upstream", f"http://127.0.0.1:{upstream}")
    store = ("--store", f"dynamodb://bench?region=eu-west-1&endpoint={dynamodb}")
    return [
        _proxy(build + MEMORY, lambda: sidecar(*behind, env=env), paced=True),
        _proxy(build + LOGGED, lambda: sidecar(*behind, env={**env, "RATELIMIT_USAGE": "memory"})),
        _proxy(build + DYNAMODB, lambda: sidecar(*behind, *store, env=env), paced=True),
        Contender(build + AUTHZ, lambda: sidecar(env=env), _load("authz"), FLOOR),
        Contender(build + CHECK, lambda: sidecar(env=env), _load("check"), FLOOR),
        Contender(build + RLS, lambda: _rls(env), _load_grpc, GRPC_FLOOR),
    ]


def _proxy(name: str, start: Callable[[], AbstractContextManager[Server]], *, paced: bool = False) -> Contender:
    return Contender(name, start, _load("get"), FLOOR, paced)


@contextmanager
def _upstream(notes: list[str]) -> Iterator[Server]:
    with ExitStack() as exits:
        try:
            server = exits.enter_context(nginx())
        except Absent as error:
            notes.append(f"the upstream is a uvicorn: {error}")
            server = exits.enter_context(module("loadtest.bench.asgi_server", "app"))
        yield server


def _load(shape: requester.Shape) -> Load:
    return lambda port, seconds, at_once: requester.request_many(port, seconds=seconds, at_once=at_once, shape=shape)


@contextmanager
def _rls(env: dict[str, str]) -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "bench.yaml").write_text(_ENVOY_CONFIG)
        port = free_port()
        with sidecar("--grpc", f"127.0.0.1:{port}", "--envoy-config", folder, env=env) as server:
            yield Server(port, server.pid)


@contextmanager
def _grpc_aio() -> Iterator[Server]:
    python, why = peers_home.python()
    if python is None:
        raise Absent(why)
    port = free_port()
    environment = {"PYTHONPATH": str(builds.ROOT)}
    with program([python, "-m", "loadtest.bench.grpc_aio", str(port)], port, env=environment) as server:
        yield server


def _load_grpc(port: int, seconds: float, at_once: int) -> tuple[float, int]:
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


def _turn(contender: Contender, server: Server, seconds: float, at_once: int) -> _Turn:
    before = server.cpu_seconds()
    rate, requests = contender.load(server.port, seconds, at_once)
    if not requests:
        raise RuntimeError(f"{contender.name} has answered nothing")
    return _Turn(rate, (server.cpu_seconds() - before) / requests * 1e6)


def _figures(
    name: str, turns: dict[str, list[_Turn]], floor: str, p99: dict[str, list[float]]
) -> dict[str, float | None]:
    added = None
    if name in p99:
        added = median(mine - theirs for mine, theirs in zip(p99[name], p99[""], strict=True))
    return {
        "requests/s": median(turn.per_second for turn in turns[name]),
        "CPU µs per request": _cpu(turns, name),
        "x CPU of nginx": None if floor == GRPC_FLOOR else _ratio(turns, name, NGINX),
        "x CPU of the floor": _ratio(turns, name, floor),
        "p99 added, ms": added,
    }


def _cpu(turns: dict[str, list[_Turn]], name: str) -> float:
    return median(turn.cpu_us for turn in turns[name])


def _ratio(turns: dict[str, list[_Turn]], one: str, other: str) -> float | None:
    """Times the CPU of the other: the median of the rounds, so that a noisy moment hits both."""
    if one not in turns or other not in turns:
        return None
    return float(median(mine.cpu_us / theirs.cpu_us for mine, theirs in zip(turns[one], turns[other], strict=True)))


def _targets(turns: dict[str, list[_Turn]]) -> list[Target]:
    found = []
    for build in ("", COMPILED):
        found += [
            Target(f"CPU µs of a request, {build + name}", _cpu(turns, build + name), "at most", bound)
            for name, bound in ((MEMORY, 60), (AUTHZ, 30), (CHECK, 40), (RLS, 60))
            if build + name in turns
        ]
        for name, bound in ((build + LOGGED, 15), (build + DYNAMODB, 35)):
            if name in turns and build + MEMORY in turns:
                pairs = zip(turns[name], turns[build + MEMORY], strict=True)
                more = median(one.cpu_us - plain.cpu_us for one, plain in pairs)
                found.append(Target(f"CPU µs more than {build + MEMORY}, {name}", more, "at most", bound))
    for one, other, most in ((MEMORY, FLOOR, 3.0), (MEMORY, NGINX, 4.0), (COMPILED + MEMORY, FLOOR, 2.2)):
        if (times := _ratio(turns, one, other)) is not None:
            found.append(Target(f"times the CPU of {other}: {one}", times, "at most", most))
    if (times := _ratio(turns, GRPC_AIO, RLS)) is not None:
        found.append(Target(f"times the CPU of {RLS}: {GRPC_AIO}", times, "at least", 4))
    return found
