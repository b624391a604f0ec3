"""Signature Version 4 for one kind of request, with everything kept that stays the same for a day or for a second.

The rules are those of AWS's "Create a signed AWS API request"; a property test compares the outcome with botocore's.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from datetime import UTC, datetime
from hashlib import sha256
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from botocore.exceptions import CredentialRetrievalError, NoCredentialsError

from ratelimit.blocking import loop_time
from ratelimit.blocking_wait import wait_for
from ratelimit.dynamodb.access import are_sendable
from ratelimit.dynamodb.errors import imported
from ratelimit.errors import StoreUnavailable

if TYPE_CHECKING:
    from _hashlib import HASH

logger = logging.getLogger("ratelimit")


CONTENT_TYPE: Final = "application/x-amz-json-1.0"
_ALGORITHM: Final = "AWS4-HMAC-SHA256"
_SERVICE: Final = "dynamodb"
_BLOCK: Final = 64
"""Bytes that SHA-256 takes at a time."""


class Secrets(NamedTuple):
    """Credentials as of one moment, compared by value."""

    access_key: str
    secret_key: str
    token: str | None


class Signer:
    """Turns bodies into complete signed requests: `POST /`, one operation, one host.

    A request is the same as the last one of that second but for body, length and signature, so the rest is kept.
    """

    def __init__(self, *, host: str, region: str, target: str, unsigned: Mapping[str, str] | None = None) -> None:
        """`host` as the header has it, with the port where it is not the scheme's own; `unsigned` are more headers."""
        self._host = host
        self._region = region
        self._target = target
        self._unsigned = "".join(f"{name}: {value}\r\n" for name, value in (unsigned or {}).items())
        self._secrets: Secrets | None = None
        self._second = -1
        self._day = ""
        self._day_key = b""
        self._head = b""
        self._canonical = sha256()
        self._inner, self._outer = _halves(b"")
        """Of the signature's HMAC, which costs half as much from here: the inner one is also past all of the string to
        sign but its last line."""

    def request(self, body: bytes, digest: str, secrets: Secrets, second: int) -> bytes:
        """Return the whole request as it is sent, signed for this moment (epoch seconds).

        `digest` is the body's SHA-256, in hexadecimal.
        """
        if second != self._second or secrets is not self._secrets:
            self._turn_to(secrets, second)
        canonical = self._canonical.copy()
        canonical.update(digest.encode())
        inner = self._inner.copy()
        inner.update(canonical.hexdigest().encode())
        signature = self._outer.copy()
        signature.update(inner.digest())
        length = b"\r\nContent-Length: %d\r\n\r\n" % len(body)
        return b"".join((self._head, signature.hexdigest().encode(), length, body))

    def _turn_to(self, secrets: Secrets, second: int) -> None:
        moment = datetime.fromtimestamp(second, UTC).strftime("%Y%m%dT%H%M%SZ")
        day = moment[:8]
        if day != self._day or secrets != self._secrets:
            self._day_key = _day_key(secrets.secret_key, day, self._region)
        scope = f"{day}/{self._region}/{_SERVICE}/aws4_request"
        headers = {"content-type": CONTENT_TYPE, "host": self._host, "x-amz-date": moment}
        if secrets.token:
            headers["x-amz-security-token"] = secrets.token
        headers["x-amz-target"] = self._target
        names = ";".join(headers)
        lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
        self._canonical = sha256(f"POST\n/\n\n{lines}\n{names}\n".encode())
        self._inner, self._outer = _halves(self._day_key)
        self._inner.update(f"{_ALGORITHM}\n{moment}\n{scope}\n".encode())
        self._head = (
            "POST / HTTP/1.1\r\n"
            + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            + self._unsigned
            + f"authorization: {_ALGORITHM} Credential={secrets.access_key}/{scope}, SignedHeaders={names}, Signature="
        ).encode()
        self._day, self._second, self._secrets = day, second, secrets


def _halves(key: bytes) -> tuple[HASH, HASH]:
    """HMAC-SHA256 (RFC 2104) as far as the key takes it, which is no longer than a block."""
    padded = key.ljust(_BLOCK, b"\0")
    return sha256(bytes(byte ^ 0x36 for byte in padded)), sha256(bytes(byte ^ 0x5C for byte in padded))


def _day_key(secret: str, day: str, region: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in (day, region, _SERVICE, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


class Unsignable(Exception):
    """The credentials hold what no header can."""


class CredentialsCache:
    """What `session.get_credentials()` gave, asked for each request: static ones may be replaced at any time.

    botocore lets the first request within a quarter of an hour of expiry fetch the next credentials, which may take
    longer than a check has. Here requests go on with those in hand, and wait only for what they cannot do without.

    `pause` is how many seconds after a refresh that failed it is tried again.
    """

    def __init__(self, credentials: Any, *, pause: float = 5.0) -> None:
        self._credentials = credentials
        self._pause = pause
        self._refreshable = isinstance(credentials, imported("botocore.credentials", "RefreshableCredentials"))
        self._raw: object = None
        self._secrets: Secrets | None = None
        self._refreshing: Any = None
        """The task that refreshes them; None while there is none."""
        self._not_before = 0.0

    def at_hand(self) -> Secrets | None:
        """Return the credentials to sign with now, where that can be told without asking botocore: static ones."""
        secrets, now = self._secrets, self._credentials
        if self._refreshable or secrets is None:
            return None
        same = (now.access_key, now.secret_key, now.token or None) == secrets
        return secrets if same else None

    async def secrets(self) -> Secrets:
        """Return the credentials to sign with now. Raise `Unsignable`, or what botocore raises where it finds none."""
        if self._credentials is None:
            raise NoCredentialsError
        if self._refreshable and (self._secrets is None or self._credentials.refresh_needed()):
            await self._refresh()
            if self._secrets is not None:
                return self._secrets
        raw = await self._frozen()
        if self._secrets is None or raw != self._raw:
            self._secrets = _checked(raw)
            self._raw = raw
        return self._secrets

    async def close(self) -> None:
        """Let go of a refresh under way."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.wait([self._refreshing])

    async def _refresh(self) -> None:
        """See that a refresh is under way; wait for it only where those in hand have expired, or there are none."""
        if self._refreshing is None and loop_time() >= self._not_before:
            self._refreshing = self._start(self._renew())
            self._refreshing.add_done_callback(self._renewed)
        task = self._refreshing
        if task is not None and (self._secrets is None or self._credentials.refresh_needed(0)):
            await self._wait(task)
            if task.cancelled():
                raise StoreUnavailable("the store was closed")
            task.result()

    def _start(self, refresh: Coroutine[Any, Any, None]) -> Any:
        return asyncio.get_running_loop().create_task(refresh)

    async def _wait(self, refreshing: Any) -> None:
        await asyncio.wait([refreshing])

    async def _ask(self) -> Any:
        found = self._credentials.get_frozen_credentials()
        return await found if isawaitable(found) else found

    async def _renew(self) -> None:
        raw = await self._frozen()
        self._raw, self._secrets = raw, _checked(raw)

    async def _frozen(self) -> Any:
        try:
            return await self._ask()
        except RuntimeError as error:  # botocore's word for: refreshed, and expired all the same
            raise CredentialRetrievalError(provider="refresh", error_msg=str(error)) from error

    def _renewed(self, task: Any) -> None:
        self._refreshing = None
        if task.cancelled():
            return
        # While they are still good, aiobotocore itself keeps quiet about a refresh that failed.
        if task.exception() is not None or self._credentials.refresh_needed():
            self._not_before = loop_time() + self._pause
            logger.warning("the AWS credentials are due, but were not refreshed; next try in %.0f s", self._pause)


class ThreadCredentials(CredentialsCache):
    """The credentials without an event loop: a thread refreshes them, while checks go on with those at hand."""

    def __init__(self, credentials: Any, start: Callable[[Coroutine[Any, Any, None]], Future[None]]) -> None:
        super().__init__(credentials)
        self._start_thread = start

    async def close(self) -> None:
        """Leave a refresh under way alone: nobody waits for it."""

    @property
    def is_refreshing(self) -> bool:
        return self._refreshing is not None

    def _start(self, refresh: Coroutine[Any, Any, None]) -> Any:
        return self._start_thread(refresh)

    async def _wait(self, refreshing: Any) -> None:
        wait_for(refreshing.result)

    async def _ask(self) -> Any:
        return wait_for(self._ask_at_once)

    def _ask_at_once(self, left: float) -> Any:
        return self._credentials.get_frozen_credentials()


def _checked(raw: Any) -> Secrets:
    """Raises `Unsignable` for what would not survive the way into a header."""
    secrets = Secrets(raw.access_key, raw.secret_key, raw.token or None)
    if not are_sendable(*secrets):
        raise Unsignable("a character that no header holds")
    return secrets
