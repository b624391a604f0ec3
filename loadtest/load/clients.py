"""How a user of Locust asks: an order to the driver on a socket, or a request over HTTP. Both on gevent, kept alive."""

from __future__ import annotations

import json
import socket
from typing import Any, Final, Protocol

from ..plan import Outcome, Series

_PATIENCE: Final = 30.0
_LETTERS: Final[dict[str, Outcome]] = {"a": "allowed", "r": "refused", "f": "failed"}


class LoadClient(Protocol):
    """Asks one server."""

    def ask(self, series: Series, user: str) -> tuple[Outcome, int | None, str]:
        """The outcome; the microseconds it took by the server's own clock, where that is known; what failed."""
        ...


class OrderClient:
    """A line to the driver, and one back: `a 134`, allowed within 134 µs."""

    def __init__(self, address: str) -> None:
        self._address = split_address(address)
        self._socket: socket.socket | None = None

    def ask(self, series: Series, user: str) -> tuple[Outcome, int | None, str]:
        try:
            letter, took, problem = self._exchange(f"{series.action or '-'} {user}\n".encode()).split(" ", 2)
        except (OSError, ValueError) as error:
            self._socket = None
            return "failed", None, repr(error)
        return _LETTERS[letter], int(took), problem

    def _exchange(self, line: bytes) -> str:
        if self._socket is None:
            self._socket = socket.create_connection(self._address, timeout=_PATIENCE)
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
        from geventhttpclient import HTTPClient

        host, port = split_address(address)
        self._http = HTTPClient(
            host,
            port,
            concurrency=1,
            connection_timeout=_PATIENCE,
            network_timeout=_PATIENCE,
            disable_ipv6=":" not in host,
        )

    def ask(self, series: Series, user: str) -> tuple[Outcome, int | None, str]:
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


def client_of(series: Series, address: str) -> LoadClient:
    """For the server that the series asks."""
    return RequestClient(address) if series.path else OrderClient(address)


def split_address(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _outcome(status: int, body: bytes, *, is_decision: bool) -> tuple[Outcome, None, str]:
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
