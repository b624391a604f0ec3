"""DynamoDB's control plane, as far as one table needs it: calls that may be repeated, waits that end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar

from botocore.exceptions import ClientError

from ratelimit.dynamodb import schema
from ratelimit.dynamodb.client import Client
from ratelimit.dynamodb.errors import Place, code_of, explained, key_mismatch
from ratelimit.dynamodb.retries import HARMLESS, Retries, Sleep
from ratelimit.dynamodb.settings import is_amazon
from ratelimit.errors import (
    AccessDenied,
    StoreMisconfigured,
    StoreThrottled,
    StoreUnavailable,
    TableMismatch,
    TableNotFound,
)

# What a `DescribeTable` answer says, and what a store asks of it before it works on the table.

_WORKING: Final = ("ACTIVE", "UPDATING")
_AT_REST: Final = ("ENABLED", "DISABLED")


def is_working(description: Mapping[str, Any]) -> bool:
    """Whether the table and its indexes take requests."""
    indexes = description.get("GlobalSecondaryIndexes") or ()
    states = [description.get("TableStatus"), *(index.get("IndexStatus", "ACTIVE") for index in indexes)]
    return all(state in _WORKING for state in states)


def is_settled(description: Mapping[str, Any]) -> bool:
    """Whether nothing is being changed any more: the table, its indexes, its encryption."""
    indexes = description.get("GlobalSecondaryIndexes") or ()
    states = [description.get("TableStatus"), *(index.get("IndexStatus", "ACTIVE") for index in indexes)]
    encryption = (description.get("SSEDescription") or {}).get("Status", "ENABLED")
    return all(state == "ACTIVE" for state in states) and encryption in _AT_REST


def check_keys(description: Mapping[str, Any], place: Place) -> None:
    """Raises `TableMismatch`."""
    found = keys_of(description, description)
    if found != tuple(f"{name} (S)" for name, _ in schema.KEY_SCHEMA):
        raise key_mismatch(place, " and ".join(found))


def keys_of(description: Mapping[str, Any], part: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys of the table or of one of its indexes, partition first, each with its type."""
    types = {a["AttributeName"]: a["AttributeType"] for a in description.get("AttributeDefinitions", ())}
    ordered = sorted(part.get("KeySchema", ()), key=lambda key: key["KeyType"] != "HASH")
    return tuple(f"{key['AttributeName']} ({types.get(key['AttributeName'], '?')})" for key in ordered)


def billing_of(description: Mapping[str, Any]) -> str:
    """A table that was never billed on demand says nothing of it."""
    return str((description.get("BillingModeSummary") or {}).get("BillingMode", "PROVISIONED"))


POLL_TIMEOUT_S: Final = 120.0
"""Seconds that a wait lasts at most, unless the caller says more."""

_SHORTEST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 2.0
_TURNED_ON: Final = ("ENABLED", "ENABLING")
_NOT_OPTIONAL: Final = (TableNotFound, TableMismatch, AccessDenied)


class WaitedInVain(StoreUnavailable):
    """DynamoDB has accepted a change and is not done with it; it goes on by itself."""


class Control:
    """One table's life. Every method raises `StoreUnavailable`'s subclasses."""

    def __init__(self, connection: Client, retries: Retries, *, sleep: Sleep = asyncio.sleep) -> None:
        self._client = connection.client
        self.place = connection.place
        self._retries = retries
        self._sleep = sleep

    async def verify(self) -> None:
        """Ours, and working: one that is being created is waited for."""
        description = await self.describe()
        check_keys(description, self.place)
        async for _ in self.polls("becomes active"):
            if is_working(description):
                return
            description = await self.describe()

    async def create(self, definition: Mapping[str, Any], extras: Mapping[str, Any]) -> bool:
        """Whether it was created here: another process may have been faster. An engine for development may not know
        the extras, and then creates the table without."""
        try:
            return await self._create({**definition, **extras})
        except StoreMisconfigured as error:
            if not extras:
                raise
            self._raise_unless_optional(error)
            return await self._create(definition)

    async def turn_on_expiry(self) -> bool:
        """False where the engine does not know it."""
        try:
            found = await self.expiry()
            if found is not None and found != schema.TTL:
                raise TableMismatch(
                    f"{self.place} expires its items by {found!r}, and this project by {schema.TTL!r}; "
                    "turn the former off, or use another table"
                )
            if found is None:
                specification = {"Enabled": True, "AttributeName": schema.TTL}
                await self.call("update_time_to_live", TimeToLiveSpecification=specification)
        except StoreMisconfigured as error:
            self._raise_unless_optional(error)
            return False
        return True

    async def turn_on_recovery(self) -> bool:
        """False where the engine does not know it."""
        specification = {"PointInTimeRecoveryEnabled": True}
        try:
            if await self.recovery():
                return True
            async for _ in self.polls("lets point-in-time recovery be turned on"):
                try:
                    await self.call("update_continuous_backups", PointInTimeRecoverySpecification=specification)
                except StoreThrottled:  # its answer for a while after a table was created
                    continue
                break
        except StoreMisconfigured as error:
            self._raise_unless_optional(error)
            return False
        return True

    async def delete(self) -> bool:
        """False where there was none."""
        try:
            await self.call("delete_table")
        except TableNotFound:
            return False
        try:
            async for _ in self.polls("is gone"):
                await self.describe()
        except TableNotFound:
            pass
        return True

    async def expiry(self) -> str | None:
        """The attribute that items expire by."""
        ttl = (await self.call("describe_time_to_live")).get("TimeToLiveDescription") or {}
        return str(ttl["AttributeName"]) if ttl.get("TimeToLiveStatus") in _TURNED_ON else None

    async def recovery(self) -> bool:
        """Whether it can be set back to a point in time."""
        backups = (await self.call("describe_continuous_backups")).get("ContinuousBackupsDescription") or {}
        recovery = backups.get("PointInTimeRecoveryDescription") or {}
        return recovery.get("PointInTimeRecoveryStatus") in _TURNED_ON

    async def tags(self, arn: str) -> dict[str, str]:
        """All of them: 50 at most, in pages of 10."""
        found: dict[str, str] = {}
        page: dict[str, Any] = {}
        while True:
            answer = await self.call("list_tags_of_resource", ResourceArn=arn, **page)
            found |= {tag["Key"]: tag["Value"] for tag in answer.get("Tags") or ()}
            if not answer.get("NextToken"):
                return found
            page = {"NextToken": answer["NextToken"]}

    async def describe(self) -> dict[str, Any]:
        """The table, as `DescribeTable` has it."""
        table = (await self.call("describe_table")).get("Table")
        if not table:
            raise StoreUnavailable(f"{self.place} gave an answer without a description")
        return dict(table)

    async def call(self, operation: str, **request: Any) -> dict[str, Any]:
        """One call about the table, repeated while it does no harm; about a resource where it is named so."""
        method: Callable[..., Awaitable[dict[str, Any]]] = getattr(self._client, operation)
        about = {} if "ResourceArn" in request else {"TableName": self.place.table}

        async def send() -> dict[str, Any]:
            with explained(self.place):
                return await method(**about, **request)

        return await self._retries.run(operation.title().replace("_", ""), send, on=HARMLESS)

    async def polls(self, until: str, *, within: float = POLL_TIMEOUT_S) -> AsyncIterator[float]:
        """Turns of a wait that ends, with growing pauses; each is the seconds waited so far."""
        pause, waited = _SHORTEST_PAUSE, 0.0
        while waited <= within:
            yield waited
            await self._sleep(pause)
            waited += pause
            pause = min(_LONGEST_PAUSE, pause * 1.5)
        raise WaitedInVain(f"waited in vain until {self.place} {until}; look at it again in a few minutes")

    async def _create(self, definition: Mapping[str, Any]) -> bool:
        with explained(self.place):
            try:
                await self._client.create_table(**definition)
            except ClientError as error:
                if code_of(error) != "ResourceInUseException":
                    raise
                return False
        return True

    def _raise_unless_optional(self, error: StoreMisconfigured) -> None:
        """What an engine for development does not know may be left out there, and only there."""
        if is_amazon(self.place.endpoint) or isinstance(error, _NOT_OPTIONAL):
            raise error


# `TableSnapshot`: what DynamoDB says of a table, and of each part that it does not say, why not.

T = TypeVar("T")

# DynamoDB Local puts this where the region belongs. It takes any encryption and any tags, and forgets them.
_LOCAL: Final = ":ddblocal:"


@dataclass(frozen=True, slots=True)
class Unknown:
    """A part that could not be looked at."""

    why: str
    permission: str | None = None
    """The IAM action that would let it be looked at; None where this engine does not know the part at all."""


Tags: TypeAlias = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSnapshot:
    """Every part is what was said, or `Unknown`."""

    place: Place
    table: Mapping[str, Any] | Unknown
    """The answer to `DescribeTable`."""
    ttl: str | Unknown | None
    """The attribute that items expire by."""
    recovery: bool | Unknown
    tags: Tags | Unknown

    @property
    def is_local(self) -> bool:
        """Whether it is DynamoDB Local that answered."""
        return not isinstance(self.table, Unknown) and _LOCAL in str(self.table.get("TableArn", ""))


async def look(control: Control) -> TableSnapshot:
    """Four calls; what is forbidden or not known here is left out. Raises `StoreUnavailable`'s other subclasses."""
    table = await _known(control, control.describe)
    arn = None if isinstance(table, Unknown) else table.get("TableArn")
    return TableSnapshot(
        place=control.place,
        table=table,
        ttl=await _known(control, control.expiry),
        recovery=await _known(control, control.recovery),
        tags=await _known(control, lambda: control.tags(arn)) if arn else _no_arn(table),
    )


async def _known(control: Control, ask: Callable[[], Awaitable[T]]) -> T | Unknown:
    try:
        return await ask()
    except AccessDenied as error:
        if error.permission is None:
            raise
        return Unknown(f"needs the permission {error.permission}", error.permission)
    except (TableNotFound, TableMismatch):
        raise
    except StoreMisconfigured:
        if is_amazon(control.place.endpoint):
            raise
        return Unknown("cannot be checked here: this engine does not know it")


def _no_arn(table: Mapping[str, Any] | Unknown) -> Unknown:
    if isinstance(table, Unknown):
        return table
    return Unknown("cannot be checked here: this engine gives its tables no name for that")
