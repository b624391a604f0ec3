"""`ServerClock`: the time by which requests are signed. One for all that is signed, whichever way it is sent.

AWS refuses what was signed more than minutes before or after its own time. Such a refusal says what that time is.
"""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

from botocore.auth import AUTH_TYPE_MAPS, SIGV4_TIMESTAMP, SigV4Auth

from ratelimit.clock import SECOND, Clock, SystemClock
from ratelimit.dynamodb.faults import is_denied

_MIN_SKEW: Final = 60
"""Seconds. Amazon forgives some minutes; a second or two is the answer's own way."""
_SIGNATURE: Final = "ratelimit-v4"
_SKEW: Final = "ratelimit_skew"
_MOMENT: Final = "ratelimit_moment"
_SIGNED: Final = ("dynamodb", "sts")


class ServerClock:
    """This machine's clock, and how far it is off."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or SystemClock()
        self.skew = 0
        """Seconds that the server is ahead of us."""

    def learn(self, date: str, skew: int) -> bool:
        """Whether the refusal of a request signed with this `skew` may be due to our clock, which is then taken to be
        as far off as the answer's `date` says."""
        try:
            theirs = int(parsedate_to_datetime(date).timestamp())
        except ValueError:
            return False
        found = theirs - self.clock.now() // SECOND
        if abs(found - skew) < _MIN_SKEW:
            return False
        self.skew = found
        return True

    def attach(self, events: Any) -> None:
        """Have all clients of a session of botocore's sign by this clock; these are the session's events."""
        for service in _SIGNED:
            events.register_first(f"choose-signer.{service}", self._on_signing)
            events.register_first(f"needs-retry.{service}", self._on_answer)

    def _on_signing(self, signature_version: object, context: dict[str, Any], **_: object) -> str | None:
        if signature_version != "v4":
            return None
        moment = datetime.fromtimestamp(self.clock.now() // SECOND + self.skew, UTC)
        context[_SKEW], context[_MOMENT] = self.skew, moment.strftime(SIGV4_TIMESTAMP)
        return _SIGNATURE

    def _on_answer(self, response: Any, attempts: int, request_dict: dict[str, Any], **_: object) -> int | None:
        """0, to try again at once, where a first attempt was refused because of the clock."""
        signed_with = request_dict["context"].get(_SKEW)
        if response is None or attempts > 1 or signed_with is None:
            return None
        http, parsed = response
        denied = is_denied(str(parsed.get("Error", {}).get("Code", "")))
        return 0 if denied and self.learn(http.headers.get("date", ""), signed_with) else None


class _ServerTime(SigV4Auth):  # type: ignore[misc]
    """botocore's own signature, as of the moment that was chosen."""

    def _modify_request_before_signing(self, request: Any) -> None:
        request.context["timestamp"] = request.context[_MOMENT]
        super()._modify_request_before_signing(request)


AUTH_TYPE_MAPS[_SIGNATURE] = _ServerTime
