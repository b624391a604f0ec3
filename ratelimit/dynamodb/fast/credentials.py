"""`Wallet`: the credentials that botocore found, as they are now. A refresh is nobody's business but its own task's.

botocore lets the first request within a quarter of an hour of expiry fetch the next credentials, which may take longer
than a check has. Here requests go on with those in hand, and wait only for what they cannot do without.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from botocore.credentials import RefreshableCredentials
from botocore.exceptions import CredentialRetrievalError, NoCredentialsError

from ratelimit.dynamodb.client import are_sendable
from ratelimit.dynamodb.fast.signing import Secrets
from ratelimit.errors import StoreUnavailable

logger = logging.getLogger("ratelimit")


class Unsignable(Exception):
    """The credentials hold what no header can."""


class Wallet:
    """What `session.get_credentials()` gave, asked for each request: static ones may be replaced at any time.

    `pause` is how many seconds after a refresh that failed it is tried again.
    """

    def __init__(self, credentials: Any, *, pause: float = 5.0) -> None:
        self._credentials = credentials
        self._pause = pause
        self._refreshable = isinstance(credentials, RefreshableCredentials)
        self._raw: object = None
        self._secrets: Secrets | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._not_before = 0.0

    @property
    def at_hand(self) -> Secrets | None:
        """The credentials to sign with now, where that can be told without asking botocore: static ones."""
        secrets, now = self._secrets, self._credentials
        if self._refreshable or secrets is None:
            return None
        same = now.secret_key == secrets.secret_key and now.access_key == secrets.access_key
        return secrets if same and (now.token or None) == secrets.token else None

    async def secrets(self) -> Secrets:
        """The credentials to sign with now. Raises `Unsignable`, or what botocore raises where it finds none."""
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
        loop = asyncio.get_running_loop()
        if self._refreshing is None and loop.time() >= self._not_before:
            self._refreshing = loop.create_task(self._renew())
            self._refreshing.add_done_callback(self._renewed)
        task = self._refreshing
        if task is not None and (self._secrets is None or self._credentials.refresh_needed(0)):
            await asyncio.wait([task])
            if task.cancelled():
                raise StoreUnavailable("the store was closed")
            task.result()

    async def _renew(self) -> None:
        raw = await self._frozen()
        self._raw, self._secrets = raw, _checked(raw)

    async def _frozen(self) -> Any:
        try:
            return await self._credentials.get_frozen_credentials()
        except RuntimeError as error:  # botocore's word for: refreshed, and expired all the same
            raise CredentialRetrievalError(provider="refresh", error_msg=str(error)) from error

    def _renewed(self, task: asyncio.Task[None]) -> None:
        self._refreshing = None
        if task.cancelled():
            return
        # While they are still good, aiobotocore itself keeps quiet about a refresh that failed.
        if task.exception() is not None or self._credentials.refresh_needed():
            self._not_before = asyncio.get_running_loop().time() + self._pause
            logger.warning("the AWS credentials are due, but were not refreshed; next try in %.0f s", self._pause)


def _checked(raw: Any) -> Secrets:
    """Raises `Unsignable` for what would not survive the way into a header."""
    secrets = Secrets(raw.access_key, raw.secret_key, raw.token or None)
    if not are_sendable(*secrets):
        raise Unsignable("a character that no header holds")
    return secrets
