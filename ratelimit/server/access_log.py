"""`AccessLog`: write a line for each request when it is over. No query strings, headers, users: those may be secrets.

The id is the one that the request went on with: its own, or the one that the proxy gave it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import msgspec

from ratelimit.decision import Decision
from ratelimit.http.problems import Problem
from ratelimit.server.connection import ClientConnection
from ratelimit.server.exchange import Exchange
from ratelimit.server.request import Request

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger("ratelimit.access")

AccessFormat: TypeAlias = Literal["text", "json", "off"]

# As much of a target as a log may hold of what could not be read.
_PATH: Final = re.compile(rb"/[^?#]{,200}")

_encoder = msgspec.json.Encoder()


class AccessLog:
    """It writes to the logger `ratelimit.access`, at INFO. `shown` is how a path is written."""

    def __init__(self, form: AccessFormat, *, shown: Callable[[str], str] = str) -> None:
        self._form = form
        self._shown = shown

    def write(self, exchange: Exchange, *, names_client: bool) -> None:
        """Log one that has been answered, or was not: its status is 0 then."""
        request, connection = exchange.request, exchange.connection
        entry = {
            "method": "WEBSOCKET" if request.opens_websocket else request.method.decode(),
            "path": request.scope["raw_path"].decode("latin-1"),
            "status": exchange.status,
            "bytes": exchange.sent,
        }
        self._log(connection, request, entry, exchange.decisions(), names_client=names_client)

    def write_refused(
        self, connection: ClientConnection, request: Request, problem: Problem, *, names_client: bool
    ) -> None:
        """Log a request that the server has answered itself, as nobody could have read it."""
        path = _PATH.match(request.target)
        entry = {
            "method": request.method.decode() if request.target else "-",
            "path": path[0].decode("latin-1") if path else "-",
            "status": problem.status,
            "bytes": len(problem.encode()),
        }
        self._log(connection, request, entry, (), names_client=names_client)

    def _log(
        self,
        connection: ClientConnection,
        request: Request,
        said: dict[str, Any],
        decisions: Sequence[Decision],
        *,
        names_client: bool,
    ) -> None:
        client = connection.client if names_client else None
        entry = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "client": client[0] if client else None,
            **said,
            "path": self._shown(said["path"]),
            "ms": round((connection.loop.time() - request.since) * 1000, 1) if request.since else 0.0,
            "request_id": (request.id or b"-").decode(),
            "policies": {decision.policy: _outcome(decision) for decision in decisions},
        }
        logger.info(_encoder.encode(entry).decode() if self._form == "json" else _line(entry))


def _outcome(decision: Any) -> str:
    if decision.shadow_denied:
        return "shadow_denied"
    return "allowed" if decision.allowed else "denied"


def _line(entry: dict[str, Any]) -> str:
    policies = ",".join(f"{name}={outcome}" for name, outcome in entry["policies"].items()) or "-"
    return (
        f"{entry['time']} {entry['client'] or '-'} {entry['method']} {entry['path']} {entry['status']} "
        f"{entry['bytes']}B {entry['ms']}ms {policies} {entry['request_id']}"
    )
