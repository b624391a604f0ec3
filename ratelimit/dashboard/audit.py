"""What is changed through the page, or is refused there, is logged; and what was changed, the usage log keeps.

Such an event is the user's whom it concerns, and goes where the user is erased. What concerns none (a plan, a reload,
an erasure that is done) is kept under the name of the action itself.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote

import msgspec

from ratelimit.dashboard.session import Viewer
from ratelimit.errors import RateLimitError
from ratelimit.http.api.app import without_user
from ratelimit.usage import UsageLog

logger = logging.getLogger("ratelimit.dashboard")

AUDIT_ACTION: Final = "ratelimit.admin"
# Of what a change says, these are who it concerns, or who that is to others.
_UNSAID: Final = frozenset({"identities", "user", "actions", "quick", "decision", "checks"})
_NAMED: Final = re.compile(r"/v1/(?P<kind>users|plans)/(?P<name>[^/]+)(?P<verb>/[a-z]+)?")


async def record(usage: UsageLog | None, viewer: Viewer, method: str, path: str, body: bytes, status: int) -> None:
    """Log what was changed, or was to be; and have the usage log keep what was."""
    logger.info("%s (%s) %s %s: %d", viewer.name, viewer.role, method, without_user(path), status)
    if usage is None or status >= 400:
        return
    user, metadata = _event(method, path, _said(body))
    metadata = {"who": viewer.name, "role": viewer.role, **metadata}
    try:
        await usage.record(user, AUDIT_ACTION, cost=0, status=status, metadata=metadata)
    except RateLimitError as error:
        logger.error("the usage log did not keep that %s did %s: %s", viewer.name, metadata["what"], error)


def _event(method: str, path: str, said: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return whose event it is, and what it says."""
    found = _NAMED.fullmatch(path)
    if found is None:
        user, metadata = said.get("user"), {"what": f"{method} {path}"}
    elif found["kind"] == "plans":
        user, metadata = None, {"what": f"{method} /v1/plans", "plan": unquote(found["name"])}
    else:
        # Who was erased leaves no trace here either.
        user = None if found["verb"] == "/erase" else unquote(found["name"])
        metadata = {"what": f"{method} {without_user(path)}"}
    values = {name: value for name, value in said.items() if name not in _UNSAID}
    return AUDIT_ACTION if user is None else str(user), {**metadata, **({"set": values} if values else {})}


def _said(body: bytes) -> Mapping[str, Any]:
    try:
        said = msgspec.json.decode(body) if body else {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}
