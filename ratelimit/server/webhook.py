"""`Webhook`: send alerts as HTTP requests, for `alert_webhook`: at least once, each with an id to know it again by.

    POST …, content-type application/json, idempotency-key: the alert's id
    {"id": "…", "user": "alice", "action": "hint", "threshold": 0.8, "quota": "5/day", "limit": 5, "used": 4,
     "at": "2026-11-21T08:00:00.123Z"}

With `alert_secret` there is `x-ratelimit-signature: sha256=…`, the HMAC (RFC 2104) of the body in hex, by which the
receiver knows who sent it.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from typing import TYPE_CHECKING, Final
from uuid import uuid4

import msgspec

from ratelimit.config import masked_path
from ratelimit.limiter.background import Alert
from ratelimit.retry import Backoff

if TYPE_CHECKING:
    import aiohttp

logger = logging.getLogger("ratelimit")

ATTEMPTS: Final = 3
TIMEOUT_S: Final = 3.0
MAX_CONCURRENT: Final = 8
_BACKOFF: Final = Backoff(first_s=0.5, max_s=2.0)
_RETRIED: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


class Webhook:
    """A hook for `Limiter(on_alert=…)`. What a receiver does not take after three attempts is logged and counted."""

    def __init__(self, url: str, secret: str | None = None) -> None:
        self.sent = 0
        self.failed = 0
        self._url = url
        self._secret = secret
        self._slots = asyncio.Semaphore(MAX_CONCURRENT)

    async def __call__(self, alert: Alert) -> None:
        """Send an alert. Never raises for a receiver that fails."""
        # Imported here: the client belongs to the extra `sidecar`.
        import aiohttp

        headers, body = self._request(alert)
        # Alerts are rare: a connection for each needs nobody to close it.
        async with (
            self._slots,
            aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as session,
        ):
            problem = await self._post(session, body)
        if problem:
            self.failed += 1
            logger.warning("an alert on %s was not taken by %s: %s", alert.action, masked_path(self._url), problem)
        else:
            self.sent += 1

    async def _post(self, session: aiohttp.ClientSession, body: bytes) -> str:
        """Return why it was not taken; empty where it was."""
        import aiohttp

        problem = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                await _BACKOFF.pause(attempt)
            try:
                async with session.post(self._url, data=body, allow_redirects=False) as answer:
                    problem = "" if 200 <= answer.status < 300 else f"status {answer.status}"
                    if answer.status not in _RETRIED:
                        break
            except TimeoutError:
                problem = f"no answer within {TIMEOUT_S:g} s"
            except aiohttp.ClientError as error:
                problem = type(error).__name__
            except UnicodeError:
                return "its host is no name that can be looked up"
        return problem

    def _request(self, alert: Alert) -> tuple[dict[str, str], bytes]:
        alert_id = str(uuid4())
        body = msgspec.json.encode({
            "id": alert_id,
            "user": alert.user,
            "action": alert.action,
            "threshold": alert.threshold,
            "quota": str(alert.quota),
            "limit": alert.quota.limit,
            "used": alert.used,
            "at": f"{alert.at:%Y-%m-%dT%H:%M:%S}.{alert.at.microsecond // 1000:03}Z",
        })  # fmt: skip
        headers = {"content-type": "application/json", "idempotency-key": alert_id}
        if self._secret:
            headers["x-ratelimit-signature"] = f"sha256={hmac.digest(self._secret.encode(), body, 'sha256').hex()}"
        return headers, body
