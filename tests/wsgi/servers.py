"""A site of its own in a server that is a process of its own, and one request to it."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

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
