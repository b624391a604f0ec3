"""Which lane a store gets, decided once when it opens."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ratelimit.dynamodb.client import Client
from ratelimit.dynamodb.errors import explained
from ratelimit.dynamodb.settings import Settings
from ratelimit.dynamodb.stats import Stats
from ratelimit.dynamodb.transport.base import BatchResult, BotoTransport, Transport, UpdateResult
from ratelimit.dynamodb.transport.endpoint import NotHere, find_endpoint
from ratelimit.dynamodb.transport.fast import FastTransport
from ratelimit.names import Key
from ratelimit.store.base import Write

SWITCH: Final = "RATELIMIT_FAST_LANE"
"""The variable that turns the lane off, whatever the settings say."""

_OFF: Final = ("off", "false", "no", "0")
_WARM: Final = 4
"""Connections made in advance: the first checks after a start find the handshakes done."""


async def open_transport(connection: Client, settings: Settings, stats: Stats) -> Transport:
    """The lane that the settings, the environment and the way to the endpoint allow. Raises `StoreUnavailable`."""
    boto = BotoTransport(connection, settings)
    if not settings.fast or os.environ.get(SWITCH, "").lower() in _OFF:
        return boto
    try:
        with explained(connection.place):
            route = await find_endpoint(connection)
    except NotHere as reason:
        return CountedTransport(boto, str(reason), stats)
    lane = FastTransport(connection, route, boto, settings, stats)
    try:
        await lane.pool.warm(_WARM)
    except BaseException:  # cancelled: the store is closed while it opens
        await lane.close()
        raise
    return lane


class CountedTransport:
    """aiobotocore's lane where the fast one was wanted and cannot go; counts that it was taken."""

    def __init__(self, lane: Transport, reason: str, stats: Stats) -> None:
        self.reason = reason
        self._lane = lane
        self._stats = stats

    async def apply(self, key: Key, write: Write) -> UpdateResult:
        """See `Transport.apply`."""
        self._stats.fall_back(self.reason)
        return await self._lane.apply(key, write)

    async def write_batch(self, requests: Sequence[Mapping[str, Any]]) -> BatchResult:
        """See `Transport.write_batch`."""
        self._stats.fall_back(self.reason)
        return await self._lane.write_batch(requests)

    async def close(self) -> None:
        """See `Transport.close`."""
        await self._lane.close()
