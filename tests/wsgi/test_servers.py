"""Behind real servers that fork their workers after the app was made: five pass, the sixth is refused, by whomever."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from itertools import count
from pathlib import Path
from uuid import uuid4

import pytest

from ratelimit.testing.engines import free_port
from tests.engines import Engine

SITE = """
import os
from ratelimit.wsgi import RateLimitMiddleware

def app(environ, start_response):
    start_response("200 OK", [("content-type", "text/plain"), ("x-worker", str(os.getpid()))])
    return [b"hello"]

app = RateLimitMiddleware.from_config(
    app,
    store=os.environ["STORE"],
    deadline=20,
    user_from="header:x-api-key",
    policies={"hint": {"quotas": "5/day", "match": "POST /hints"}},
)
"""
PRE_FORK = """
import os, signal, socket, sys
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from site_of_a_test import app

class Server(ThreadingMixIn, WSGIServer):
    pass

server = Server(("127.0.0.1", int(sys.argv[1])), WSGIRequestHandler)
server.set_app(app)
workers = []
for _ in range(3):
    worker = os.fork()
    if worker == 0:
        server.serve_forever()
    workers.append(worker)
signal.signal(signal.SIGTERM, lambda *_: [os.kill(worker, signal.SIGKILL) for worker in workers])
for worker in workers:
    os.waitpid(worker, 0)
"""
GUNICORN = ("-m", "gunicorn", "site_of_a_test:app", "--workers=3", "--bind=127.0.0.1:PORT")


@contextmanager
def serving(folder: Path, store: str, command: list[str], port: int, *, site: str = SITE) -> Iterator[None]:
    (folder / "site_of_a_test.py").write_text(site)
    (folder / "pre_fork.py").write_text(PRE_FORK)
    env = {"STORE": store, "PYTHONPATH": f"{folder}:{Path(__file__).parents[2]}", "PATH": "/usr/bin:/bin"}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([sys.executable, *command], cwd=folder, env=env, stdout=log, stderr=log)
        try:
            while True:
                assert server.poll() is None, (folder / "log").read_text()
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError:
                    time.sleep(0.05)
            yield
        finally:
            server.terminate()
            server.wait(60)


def ask(port: int, user: str) -> tuple[int, str | None, str | None]:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", "/hints", headers={"x-api-key": user})
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.getheader("x-worker"), answer.getheader("ratelimit")
    finally:
        connection.close()


@pytest.mark.process
@pytest.mark.skipif(not hasattr(sys, "getdlopenflags"), reason="Windows does not fork")
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["pre_fork.py", "PORT"], id="wsgiref, forked"),
        pytest.param([*GUNICORN, "--worker-class=sync", "--preload"], id="gunicorn sync", marks=pytest.mark.slow),
        pytest.param(
            [*GUNICORN, "--worker-class=gthread", "--threads=4", "--preload"],
            id="gunicorn gthread",
            marks=pytest.mark.slow,
        ),
        pytest.param([*GUNICORN, "--worker-class=gevent"], id="gunicorn gevent", marks=pytest.mark.slow),
    ],
)
def test_five_pass_and_the_sixth_is_refused_across_workers(command: list[str], engine: Engine, tmp_path: Path) -> None:
    port = free_port()
    store = engine.store_url(f"wsgi-{uuid4().hex[:8]}", create="true")
    with serving(tmp_path, store, [part.replace("PORT", str(port)) for part in command], port):
        workers, until = set(), time.monotonic() + 120
        for number in count():
            answers = [ask(port, f"user-{number}") for _ in range(6)]
            assert [status for status, _, _ in answers] == [200] * 5 + [429]
            assert [fields.partition(";t=")[0] for _, _, fields in answers if fields] == [
                f'"hint";r={left}' for left in (4, 3, 2, 1, 0, 0)
            ]
            workers |= {worker for _, worker, _ in answers if worker}
            if (len(workers) > 1 and number > 2) or time.monotonic() > until:
                break
        assert len(workers) > 1
