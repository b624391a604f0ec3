"""`Client`: how a table is reached, whoever found it out: place, credentials, certificates, the server's time."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any, Final, Self, TypeAlias

from botocore import xform_name

from ratelimit.clock import SECOND, Clock, SystemClock
from ratelimit.dynamodb.errors import Place, is_denied
from ratelimit.dynamodb.schema import GSI2

LOCAL_REGION: Final = "us-east-1"
"""Of an engine on this machine, where nobody says another."""

_MIN_SKEW: Final = 60
"""Seconds. Amazon forgives some minutes; a second or two is the answer's own way."""
SIGNATURE: Final = "ratelimit-v4"
MOMENT: Final = "ratelimit_moment"
_SKEW: Final = "ratelimit_skew"
_SIGNED: Final = ("dynamodb", "sts")
_TIMESTAMP: Final = "%Y%m%dT%H%M%SZ"

_FAST: Final = frozenset(("BatchGetItem", "DeleteItem", "DescribeTable", "GetItem", "PutItem", "TransactWriteItems"))
"""Operations whose answers are small. (What is written all the time has ways of its own.)"""
_MAX_FAST_EVENTS: Final = 250
"""Events are 2 KB at most, so that so many are less than a fast connection takes (`MAX_ANSWER_BYTES`)."""

Verify: TypeAlias = bool | str
"""True, or the file with the certificates to trust."""


class ServerClock:
    """This machine's clock, and how far it is off: the time by which requests are signed, whichever way they are sent.

    AWS refuses what was signed more than minutes before or after its own time, and says in the refusal what that is.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or SystemClock()
        self.skew = 0
        """Seconds that the server is ahead of us."""

    def learn(self, date: str, skew: int) -> bool:
        """Return whether the refusal of a request signed with this `skew` may be due to our clock, which is then taken
        to be as far off as the answer's `date` says."""
        from email.utils import parsedate_to_datetime  # which takes its time, and clocks are seldom off

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
        context[_SKEW], context[MOMENT] = self.skew, moment.strftime(_TIMESTAMP)
        return SIGNATURE

    def _on_answer(self, response: Any, attempts: int, request_dict: dict[str, Any], **_: object) -> int | None:
        """Return 0, to try again at once, where a first attempt was refused because of the clock."""
        signed_with = request_dict["context"].get(_SKEW)
        if response is None or attempts > 1 or signed_with is None:
            return None
        http, parsed = response
        denied = is_denied(str(parsed.get("Error", {}).get("Code", "")))
        return 0 if denied and self.learn(http.headers.get("date", ""), signed_with) else None


class Client:
    """A client that is open, where it leads, and what it signs and verifies with. Made by `client.connect`, or without
    an event loop by `blocking.connect`."""

    __slots__ = ("_exits", "api", "clock", "credentials", "fast", "place", "verify")

    def __init__(
        self,
        api: Any,
        place: Place,
        exits: AsyncExitStack,
        *,
        credentials: Any,
        verify: Verify,
        clock: ServerClock,
    ) -> None:
        self.api = api
        """aiobotocore's client, or what is awaited like it."""
        self.place = place
        self.credentials = credentials
        """botocore's, which refresh themselves; None where there are none."""
        self.verify = verify
        """True for the certificates that botocore trusts, or the file that the AWS set-up names (`AWS_CA_BUNDLE`)."""
        self.clock = clock
        self.fast: Any = None
        """The fast transport, once there is one: whatever it does not send goes by `api`."""
        self._exits = exits

    async def call(self, operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to one request. Raise what botocore raises."""
        if self.fast is not None and _is_small(operation, request):
            answer: dict[str, Any] | None = await self.fast.call(operation, request)
            if answer is not None:
                return answer
        found: dict[str, Any] = await getattr(self.api, xform_name(operation))(**request)
        return found

    async def close(self) -> None:
        """Let go of the connections; harmless when closed."""
        await self._exits.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _is_small(operation: str, request: Mapping[str, Any]) -> bool:
    if operation == "Query":
        return request.get("IndexName") == GSI2 and request["Limit"] <= _MAX_FAST_EVENTS
    return operation in _FAST


class LaterApi:
    """AWS's own client, made when it is needed."""

    def __getattr__(self, name: str) -> Any:
        async def call(*args: Any, **request: Any) -> Any:
            return await self._ask(name, args, request)

        return call

    async def _ask(self, name: str, args: tuple[Any, ...], request: dict[str, Any]) -> Any:
        raise NotImplementedError


def are_sendable(access_key: str, secret_key: str, token: str | None) -> bool:
    """Return whether credentials survive the way into a header, and are what AWS gave: keys have no spaces."""
    sent = (access_key, token or "-")
    return (
        bool(secret_key)
        and all(text and text.isascii() for text in sent)
        and all(text.isprintable() and " " not in text for text in (*sent, secret_key))
    )
