"""Programs that stand side by side in a bench: each on a free port, with what it has used of a core of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from loadtest.bench.builds import Build, interpreter
from loadtest.bench.runner import CREDENTIALS
from ratelimit.testing.engines import EngineError, free_port, start

SERVER_CORE: Final = 0
CLIENT_CORE: Final = 1
"""Also that of the upstream."""
ROOMY: Final = "1000000000/hour"

_READY_S: Final = 120.0
_ENDS_S: Final = 10.0
_LAST_WORDS: Final = 300

_NGINX: Final = """daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr error;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  {http}
  server {{ listen 127.0.0.1:{port} backlog=2048; location / {{ {location} }} }}
}}
"""
_LIMIT_REQ: Final = """limit_req_zone $http_x_user zone=users:10m rate=1000000r/s;
  upstream app {{ server 127.0.0.1:{upstream}; keepalive 128; keepalive_requests 1000000000; }}"""
_PROXY_PASS: Final = """limit_req zone=users burst=100000 nodelay;
    proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $http_host;
    proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Request-ID $request_id;"""
_HAPROXY: Final = """global
  nbthread 1
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  http-reuse always
  option forwardfor
frontend in
  bind 127.0.0.1:{port}
  stick-table type string len 64 size 100k expire 1h store http_req_rate(1h)
  http-request track-sc0 req.hdr(x-user)
  http-request deny deny_status 429 if {{ sc_http_req_rate(0) gt 1000000000 }}
  default_backend app
backend app
  server app 127.0.0.1:{upstream}
"""


class Absent(Exception):
    """What was asked for is not on this machine; the message says what is missing."""


class MeasuredServer(NamedTuple):
    """A program that listens."""

    port: int
    pid: int

    def cpu_seconds(self) -> float:
        """Since it was started, by it and the processes that it has started."""
        return sum(time.clock_gettime(~pid << 3 | 2) for pid in _family(self.pid))


@contextmanager
def program(
    command: Sequence[str], port: int, *, core: int | None = SERVER_CORE, env: Mapping[str, str] | None = None
) -> Iterator[MeasuredServer]:
    """Run one that listens on this port soon. Raises `Absent`, with its last words, where it does not."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [*_pinned(core), *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **(env or {})},
        )
        try:
            if not _listens(port, process):
                log.seek(0)
                raise Absent(f"{Path(command[0]).name} did not start: {log.read()[-_LAST_WORDS:].strip()}")
            yield MeasuredServer(port, process.pid)
        finally:
            process.terminate()
            try:
                process.wait(_ENDS_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def module(name: str, *arguments: str, core: int = SERVER_CORE, build: Build = "") -> Iterator[MeasuredServer]:
    """Run one of ours, or of a peer: `python -m NAME PORT ARGUMENTS`."""
    port, (python, environment) = free_port(), interpreter(build)
    command = [python, "-m", name, str(port), *arguments]
    with program(command, port, core=core, env={**CREDENTIALS, **environment}) as server:
        yield server


@contextmanager
def sidecar(*options: str, build: Build = "", env: Mapping[str, str] | None = None) -> Iterator[MeasuredServer]:
    """Run `ratelimit serve`, with one roomy policy for every request, users by `X-User`, and no access log."""
    port, (python, environment) = free_port(), interpreter(build)
    command = [python, "-m", "ratelimit", "serve", "--port", str(port), "--admin", "off", "--access-log", "off"]
    policy = ("--action", "api", "--quota", ROOMY, "--user-from", "header:x-user", "--linger", "0")
    given = {**CREDENTIALS, "RATELIMIT_DEADLINE": "30", **environment, **(env or {})}
    with program([*command, *policy, *options], port, env=given) as server:
        yield server


@contextmanager
def nginx(upstream: int | None = None) -> Iterator[MeasuredServer]:
    """With `limit_req` in front of an upstream; without one, it is the upstream, and answers at once."""
    found, port = _installed("nginx", "nginx-light"), free_port()
    http, location = _LIMIT_REQ.format(upstream=upstream), _PROXY_PASS
    if upstream is None:
        http, location = "", 'return 200 "hello";'
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "nginx.conf")
        config.write_text(_NGINX.format(folder=folder, port=port, http=http, location=location))
        command = [found, "-p", folder, "-e", "stderr", "-c", str(config)]
        with program(command, port, core=CLIENT_CORE if upstream is None else SERVER_CORE) as server:
            yield server


@contextmanager
def haproxy(upstream: int) -> Iterator[MeasuredServer]:
    """With a stick table in front of an upstream."""
    found, port = _installed("haproxy", "haproxy"), free_port()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "haproxy.cfg")
        config.write_text(_HAPROXY.format(port=port, upstream=upstream))
        with program([found, "-db", "-q", "-f", str(config)], port) as server:
            yield server


@contextmanager
def redis() -> Iterator[str]:
    """Run a Redis that keeps nothing, and yield its URL. Raises `Absent`."""
    found, port = _installed("redis-server", "redis-server"), free_port()
    with tempfile.TemporaryDirectory() as scratch:
        keeping = ["--save", "", "--appendonly", "no", "--dir", scratch]
        with program([found, "--port", str(port), "--bind", "127.0.0.1", *keeping], port, core=None):
            yield f"redis://127.0.0.1:{port}"


@contextmanager
def engine(name: str) -> Iterator[str]:
    """Run an engine that speaks DynamoDB, and yield its endpoint. Raises `Absent`."""
    exits = ExitStack()
    try:
        running = exits.enter_context(start(name))
    except EngineError as error:
        raise Absent(str(error)) from error
    with exits:
        yield running.endpoint


def megabytes_of(field: str, pid: int | str = "self") -> float:
    """Return a line of `/proc/PID/status`, such as `VmRSS`."""
    lines = Path("/proc", str(pid), "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def on_client_core(command: Sequence[str]) -> list[str]:
    """The command of a client, away from the server that it measures."""
    return [*_pinned(CLIENT_CORE), *command]


def _installed(name: str, package: str) -> str:
    if found := shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin"):
        return found
    raise Absent(f"there is no {name} on the PATH (Debian's package {package} has it)")


def _pinned(core: int | None) -> list[str]:
    is_there = core is not None and shutil.which("taskset") and (os.cpu_count() or 1) > core
    return ["taskset", "-c", str(core)] if is_there else []


def _listens(port: int, process: subprocess.Popen[bytes]) -> bool:
    until = time.monotonic() + _READY_S
    while process.poll() is None and time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return True
    return False


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in _family(int(child)))]
