"""What requests are sent over: sockets that a fork does not share, aiobotocore's HTTP with care for idle connections.

A connection may die while this process stands still (blocking code, a frozen container, a suspended machine): the loop
has not been told, and whatever is sent there is lost. So a connection that was idle is looked at before it is used.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import time
from collections.abc import Callable
from functools import partial
from math import inf
from types import SimpleNamespace
from typing import Any, Final
from weakref import WeakSet

import aiohttp
from aiobotocore.httpsession import AIOHTTPSession
from botocore import exceptions as aws

from ratelimit.dynamodb.errors import ISSUER
from ratelimit.dynamodb.settings import without_userinfo

STALE_S: Final = 1.0
"""A connection that was idle for so long and then ends without a word has most likely been closed before the request
came. It is sent once more: at worst it is counted twice, and usage reads too high, never too low."""

_LOOK_AFTER_S: Final = 0.001
_BOOT_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", None)

elapsed: Final[Callable[[], float]] = (
    time.monotonic if _BOOT_CLOCK is None else partial(time.clock_gettime, _BOOT_CLOCK)
)
"""Seconds, with those in which the machine was suspended. (A loop's own time may be as old as its present turn.)"""

_sockets: Final[WeakSet[socket.socket]] = WeakSet()


def new_socket(address: Any) -> socket.socket:
    """A socket for one of `getaddrinfo`'s answers, which a forked child does not share."""
    family, kind, protocol = address[:3]
    made = socket.socket(family, kind, protocol)
    _sockets.add(made)
    return made


def _cut_off() -> None:
    """In a forked child, put a dead socket in the place of each: nothing the child does, not even to close it or to
    end, reaches the parent's connections."""
    inherited = [one for one in _sockets if one.fileno() >= 0]
    if not inherited:
        return
    dead, other = socket.socketpair()
    other.close()
    for one in inherited:
        os.dup2(dead.fileno(), one.fileno(), inheritable=False)
    dead.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_cut_off)


class Stale(aws.ConnectionClosedError):  # type: ignore[misc]
    """The connection had been idle for `STALE_S`, and ended without a word."""


class Watch:
    """Tells whether anything has come on a connection on which nothing should: its end, most likely."""

    __slots__ = ("_poll",)

    def __init__(self, watched: socket.socket) -> None:
        self._poll: Callable[[int], list[tuple[int, int]]] | None = None
        if hasattr(select, "poll"):
            poll = select.poll()
            poll.register(watched, select.POLLIN)
            self._poll = poll.poll

    def is_quiet(self, idle: float) -> bool:
        """After so many seconds of use by nobody. In the first moment it does not look."""
        return idle < _LOOK_AFTER_S or self._poll is None or not self._poll(0)


class Session(AIOHTTPSession):  # type: ignore[misc]
    """aiobotocore's, for DynamoDB and for whoever gives the credentials. It follows no redirect, for the session token
    would go along."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._used = inf

    async def send(self, request: Any) -> Any:
        """See `AIOHTTPSession`."""
        try:
            return await self._send_carefully(request)
        except aws.BotoCoreError as error:
            if "X-Amz-Target" not in request.headers:  # which DynamoDB's all have
                error.kwargs[ISSUER] = without_userinfo(request.url.partition("?")[0])
            raise

    async def _send_carefully(self, request: Any) -> Any:
        idle = elapsed() - self._used
        if idle >= _LOOK_AFTER_S:
            # Two turns of the loop: one to hear of what has ended meanwhile, one to let go of it.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        try:
            return await super().send(request)
        except (aws.ConnectionClosedError, aws.EndpointConnectionError) as error:
            if idle < STALE_S or isinstance(error.kwargs.get("error"), aiohttp.ClientConnectorError):
                raise
        finally:
            self._used = elapsed()
        return await super().send(request)

    async def _get_session(self, proxy_url: str | None) -> Any:
        session = await super()._get_session(proxy_url)
        return SimpleNamespace(request=partial(session.request, allow_redirects=False))
