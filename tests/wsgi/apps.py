"""A WSGI app of a test, and ways to ask one with nothing in between."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple
from wsgiref.validate import validator

from ratelimit import MemoryStore, Policy
from ratelimit.sync import Limiter
from ratelimit.testing import FakeClock

HINT = Policy("hint", "5/day", match="POST /hints")


def limiter_of(*policies: Policy, store: Any = None, clock: FakeClock | None = None) -> Limiter:
    return Limiter(MemoryStore() if store is None else store, policies or [HINT], clock=clock or FakeClock())


class Reply(NamedTuple):
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> list[str]:
        return [value for one, value in self.headers if one.lower() == name]


def hello(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """The smallest app: answers 200 to everything, `X-Status` as asked."""
    status = environ.get("HTTP_X_STATUS", "200")
    start_response(f"{status} As asked", [("content-type", "text/plain")])
    return [b"hello"]


def environ_of(
    path: str = "/hints",
    *,
    method: str = "POST",
    headers: Iterable[tuple[str, str]] = (),
    address: str = "203.0.113.7",
    root: str = "",
    **more: str,
) -> dict[str, Any]:
    path, _, query = path.partition("?")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method, "SCRIPT_NAME": root, "PATH_INFO": path, "QUERY_STRING": query,
        "SERVER_NAME": "127.0.0.1", "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1", "REMOTE_ADDR": address,
        "REMOTE_PORT": "50000", "HTTP_HOST": "127.0.0.1", "wsgi.version": (1, 0), "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(), "wsgi.errors": io.StringIO(), "wsgi.multithread": True,
        "wsgi.multiprocess": True, "wsgi.run_once": False,
    }  # fmt: skip
    for name, value in headers:
        environ[f"HTTP_{name.upper().replace('-', '_')}"] = value
    return {**environ, **more}


def call(app: Callable[..., Iterable[bytes]], environ: dict[str, Any] | None = None, **options: Any) -> Reply:
    """What an app answers, as a server that knows PEP 3333 by heart hears it."""
    started: list[tuple[str, list[tuple[str, str]]]] = []
    written: list[bytes] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], None]:
        if exc_info is not None and written:
            raise exc_info[1]
        started[:] = [(status, headers)]
        return written.append

    environ = environ_of(**options) if environ is None else environ
    body = validator(app)(environ, start_response)
    try:
        written += [piece for piece in body if piece]
    finally:
        body.close()  # type: ignore[attr-defined]
    ((status, headers),) = started
    return Reply(int(status[:3]), headers, b"".join(written))
