"""Delete what has expired from a table that does not do it itself: one strongly consistent over its regions."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from ratelimit.clock import SECOND, Clock, SystemClock
from ratelimit.dynamodb import schema
from ratelimit.dynamodb.access import Client
from ratelimit.dynamodb.calls import ConditionFailed, Retries, Stats, TableCalls
from ratelimit.dynamodb.settings import Settings
from ratelimit.store.base import SCAN_PAGE

DELETES_AT_ONCE: Final = 25
_ATTEMPTS: Final = 10
_READ_TIMEOUT_S: Final = 60.0
_EXPIRED: Final = "#ttl < :now"


async def sweep_table(settings: Settings, *, clock: Clock | None = None) -> int:
    """Delete the items whose time is over, and return how many there were. Reads the whole table; may be repeated.

    An item that is written again meanwhile stays: its time has moved.
    """
    from ratelimit.dynamodb.client import connect  # which takes its time, and threads do without

    settings = replace(settings, read_timeout=max(settings.read_timeout, _READ_TIMEOUT_S))
    async with await connect(settings) as client:

        async def opened() -> Client:
            return client

        calls = TableCalls(opened, settings, stats := Stats(), Retries(_ATTEMPTS, stats))
        expired: dict[str, Any] = {
            "ExpressionAttributeNames": {"#ttl": schema.TTL},
            "ExpressionAttributeValues": {":now": {"N": str((clock or SystemClock()).now() // SECOND)}},
        }
        request = {"FilterExpression": _EXPIRED, "ProjectionExpression": f"{schema.PK}, {schema.SK}", **expired}
        start: dict[str, Any] = {}
        swept = 0
        while True:
            items, last = await calls.page("Scan", Limit=SCAN_PAGE, **request, **start)
            for place in range(0, len(items), DELETES_AT_ONCE):
                group = items[place : place + DELETES_AT_ONCE]
                swept += sum(await asyncio.gather(*(_delete(calls, key, expired) for key in group)))
            if last is None:
                return swept
            start = {"ExclusiveStartKey": last}


async def _delete(calls: TableCalls, key: Mapping[str, Any], expired: Mapping[str, Any]) -> bool:
    try:
        await calls.run("DeleteItem", Key=key, ConditionExpression=_EXPIRED, **expired)
    except ConditionFailed:  # it was written again, or is gone
        return False
    return True
