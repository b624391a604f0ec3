"""DynamoDB's control plane, as far as one table needs it: calls that may be repeated, waits that end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

from botocore.exceptions import ClientError

from ratelimit.dynamodb import schema
from ratelimit.dynamodb.client import Connection
from ratelimit.dynamodb.faults import code_of, explained
from ratelimit.dynamodb.retries import HARMLESS, Retries, Sleep
from ratelimit.dynamodb.settings import is_amazon
from ratelimit.dynamodb.status import TableStatus, check_keys, is_working, to_status
from ratelimit.errors import (
    AccessDenied,
    StoreMisconfigured,
    StoreThrottled,
    StoreUnavailable,
    TableMismatch,
    TableNotFound,
)

_POLLS: Final = 70
_SHORTEST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 2.0
_TURNED_ON: Final = ("ENABLED", "ENABLING")
_NOT_OPTIONAL: Final = (TableNotFound, TableMismatch, AccessDenied)


class Control:
    """One table's life. Every method raises `StoreUnavailable`'s subclasses."""

    def __init__(self, connection: Connection, retries: Retries, *, sleep: Sleep = asyncio.sleep) -> None:
        self._client = connection.client
        self._place = connection.place
        self._retries = retries
        self._sleep = sleep

    async def verify(self) -> None:
        """Ours, and working: one that is being created is waited for."""
        description = await self._describe()
        check_keys(description, self._place)
        async for _ in self._polls("becomes active"):
            if is_working(description):
                return
            description = await self._describe()

    async def create(self) -> bool:
        """Whether it was created here: another process may have been faster."""
        definition = schema.table_definition(self._place.table)
        try:
            return await self._create({**definition, "SSESpecification": {"Enabled": True}})
        except StoreMisconfigured as error:
            self._raise_unless_optional(error)
            return await self._create(definition)

    async def turn_on_expiry(self) -> bool:
        """False where the engine does not know it."""
        try:
            found = await self._ttl()
            if found is not None and found != schema.TTL:
                raise TableMismatch(
                    f"{self._place} expires its items by {found!r}, and this project by {schema.TTL!r}; "
                    "turn the former off, or use another table"
                )
            if found is None:
                specification = {"Enabled": True, "AttributeName": schema.TTL}
                await self._call("update_time_to_live", TimeToLiveSpecification=specification)
        except StoreMisconfigured as error:
            self._raise_unless_optional(error)
            return False
        return True

    async def turn_on_recovery(self) -> bool:
        """False where the engine does not know it."""
        specification = {"PointInTimeRecoveryEnabled": True}
        try:
            if await self._recovery():
                return True
            async for _ in self._polls("lets point-in-time recovery be turned on"):
                try:
                    await self._call("update_continuous_backups", PointInTimeRecoverySpecification=specification)
                except StoreThrottled:  # its answer for a while after a table was created
                    continue
                break
        except StoreMisconfigured as error:
            self._raise_unless_optional(error)
            return False
        return True

    async def status(self) -> TableStatus:
        """All of it, in three calls; of the last two, what the engine and the permissions allow to know."""
        description = await self._describe()
        ttl: str | None = None
        recovery: bool | None = None
        try:
            ttl = await self._ttl()
            recovery = await self._recovery()
        except StoreMisconfigured:
            pass
        return to_status(description, self._place, ttl=ttl, recovery=recovery)

    async def delete(self) -> bool:
        """False where there was none."""
        try:
            await self._call("delete_table")
        except TableNotFound:
            return False
        try:
            async for _ in self._polls("is gone"):
                await self._describe()
        except TableNotFound:
            pass
        return True

    async def _create(self, definition: dict[str, Any]) -> bool:
        with explained(self._place):
            try:
                await self._client.create_table(**definition)
            except ClientError as error:
                if code_of(error) != "ResourceInUseException":
                    raise
                return False
        return True

    async def _ttl(self) -> str | None:
        ttl = (await self._call("describe_time_to_live")).get("TimeToLiveDescription") or {}
        return str(ttl["AttributeName"]) if ttl.get("TimeToLiveStatus") in _TURNED_ON else None

    async def _recovery(self) -> bool:
        backups = (await self._call("describe_continuous_backups")).get("ContinuousBackupsDescription") or {}
        recovery = backups.get("PointInTimeRecoveryDescription") or {}
        return recovery.get("PointInTimeRecoveryStatus") in _TURNED_ON

    async def _describe(self) -> dict[str, Any]:
        table = (await self._call("describe_table")).get("Table")
        if not table:
            raise StoreUnavailable(f"{self._place} gave an answer without a description")
        return dict(table)

    async def _call(self, operation: str, **request: Any) -> dict[str, Any]:
        method: Callable[..., Awaitable[dict[str, Any]]] = getattr(self._client, operation)

        async def send() -> dict[str, Any]:
            with explained(self._place):
                return await method(TableName=self._place.table, **request)

        return await self._retries.run(operation.title().replace("_", ""), send, on=HARMLESS)

    async def _polls(self, until: str) -> AsyncIterator[int]:
        """Turns of a wait that ends: two minutes or so, with growing pauses."""
        pause = _SHORTEST_PAUSE
        for turn in range(_POLLS):
            yield turn
            await self._sleep(pause)
            pause = min(_LONGEST_PAUSE, pause * 1.5)
        raise StoreUnavailable(f"waited in vain until {self._place} {until}; look at it again in a few minutes")

    def _raise_unless_optional(self, error: StoreMisconfigured) -> None:
        """What an engine for development does not know may be left out there, and only there."""
        if is_amazon(self._place.endpoint) or isinstance(error, _NOT_OPTIONAL):
            raise error
