"""The table itself: create it as this project needs it, look at it, verify it, delete it.

Everything may be done twice. Features that a development engine does not know (keys in KMS, point-in-time recovery)
are left out there and reported in `TableStatus.missing`; on Amazon's own endpoint they are not optional.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from ratelimit.dynamodb.client import Connection, connect
from ratelimit.dynamodb.control import Control
from ratelimit.dynamodb.retries import Retries
from ratelimit.dynamodb.settings import Settings
from ratelimit.dynamodb.stats import Stats
from ratelimit.dynamodb.status import ENCRYPTION_FEATURE, KMS, RECOVERY_FEATURE, TTL_FEATURE, TableStatus
from ratelimit.errors import TableNotFound

_CONNECT_TIMEOUT: Final = 5.0
_READ_TIMEOUT: Final = 15.0
_ATTEMPTS: Final = 5


async def create_table(settings: Settings) -> TableStatus:
    """Create the table, or complete one that exists and has our keys. Raises `TableMismatch`, `AccessDenied`, ...

    A table that exists keeps its data, billing and encryption; expiry and point-in-time recovery are turned on.
    """
    async with await _connect(settings) as connection:
        return await create_on(connection, _retries(settings))


async def table_status(settings: Settings) -> TableStatus:
    """How the table stands. Raises `TableNotFound`."""
    async with await _connect(settings) as connection:
        return await Control(connection, _retries(settings)).status()


async def delete_table(settings: Settings) -> bool:
    """Delete the table and all that is in it, and wait until it is gone; False where there was none."""
    async with await _connect(settings) as connection:
        return await Control(connection, _retries(settings)).delete()


async def create_on(connection: Connection, retries: Retries) -> TableStatus:
    """As `create_table`, on a connection that is open."""
    control = Control(connection, retries)
    created = False
    try:
        await control.verify()
    except TableNotFound:
        created = await control.create()
        await control.verify()
    missing = [] if await control.turn_on_expiry() else [TTL_FEATURE]
    missing += [] if await control.turn_on_recovery() else [RECOVERY_FEATURE]
    status = await control.status()
    if created and status.encrypted_with != KMS:
        missing.append(ENCRYPTION_FEATURE)
    return replace(status, created=created, missing=tuple(dict.fromkeys((*missing, *status.missing))))


async def ensure_on(connection: Connection, retries: Retries) -> None:
    """Create the table where there is none; one that exists is verified, and not touched."""
    try:
        await verify_on(connection, retries)
    except TableNotFound:
        await create_on(connection, retries)


async def verify_on(connection: Connection, retries: Retries) -> None:
    """Raises `TableNotFound`, `TableMismatch` or `AccessDenied` where the store could not work on the table.

    One that is being created is waited for.
    """
    await Control(connection, retries).verify()


async def _connect(settings: Settings) -> Connection:
    """The control plane takes its time, which a check could not afford."""
    return await connect(replace(settings, connect_timeout=_CONNECT_TIMEOUT, read_timeout=_READ_TIMEOUT))


def _retries(settings: Settings) -> Retries:
    return Retries(max(settings.attempts, _ATTEMPTS), Stats())
