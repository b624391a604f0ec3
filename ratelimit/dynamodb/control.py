"""DynamoDB's control plane, as far as one table needs it: calls that may be repeated, waits that end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from botocore.exceptions import ClientError

from ratelimit.blocking import sleep
from ratelimit.dynamodb import schema
from ratelimit.dynamodb.access import Client
from ratelimit.dynamodb.calls import HARMLESS, Retries
from ratelimit.dynamodb.errors import Place, code_of, explained, key_mismatch
from ratelimit.dynamodb.replicas import check_recorded_regions, check_replicas
from ratelimit.dynamodb.settings import Settings, is_amazon
from ratelimit.errors import (
    AccessDenied,
    StoreMisconfigured,
    StoreThrottled,
    StoreUnavailable,
    TableMismatch,
    TableNotFound,
)

_WORKING: Final = ("ACTIVE", "UPDATING")
_AT_REST: Final = ("ENABLED", "DISABLED")


def is_working(description: Mapping[str, Any]) -> bool:
    """Return whether the table and its indexes take requests."""
    return all(state in _WORKING for state in _states(description))


def is_settled(description: Mapping[str, Any]) -> bool:
    """Return whether nothing is being changed any more: the table, its indexes, its encryption."""
    encryption = (description.get("SSEDescription") or {}).get("Status", "ENABLED")
    return all(state == "ACTIVE" for state in _states(description)) and encryption in _AT_REST


def _states(description: Mapping[str, Any]) -> list[str | None]:
    indexes = description.get("GlobalSecondaryIndexes") or ()
    return [description.get("TableStatus"), *(index.get("IndexStatus", "ACTIVE") for index in indexes)]


def check_keys(description: Mapping[str, Any], place: Place) -> None:
    """Raise `TableMismatch` where they are not ours."""
    found = keys_of(description, description)
    if found != tuple(f"{name} (S)" for name, _ in schema.KEY_SCHEMA):
        raise key_mismatch(place, " and ".join(found))


def keys_of(description: Mapping[str, Any], part: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the keys of the table or of one of its indexes, partition first, each with its type."""
    types = {a["AttributeName"]: a["AttributeType"] for a in description.get("AttributeDefinitions", ())}
    ordered = sorted(part.get("KeySchema", ()), key=lambda key: key["KeyType"] != "HASH")
    return tuple(f"{key['AttributeName']} ({types.get(key['AttributeName'], '?')})" for key in ordered)


def billing_of(description: Mapping[str, Any]) -> str:
    # A table that was never billed on demand says nothing of it.
    return str((description.get("BillingModeSummary") or {}).get("BillingMode", "PROVISIONED"))


POLL_TIMEOUT_S: Final = 120.0
"""That a wait lasts at most, unless the caller says more."""

_MIN_PAUSE_S: Final = 0.05
_MAX_PAUSE_S: Final = 2.0
_TURNED_ON: Final = ("ENABLED", "ENABLING")
_NOT_OPTIONAL: Final = (TableNotFound, TableMismatch, AccessDenied)


class WaitedInVain(StoreUnavailable):
    """DynamoDB has accepted a change and is not done with it; it goes on by itself."""


class Control:
    """One table's life. Every method raises `StoreUnavailable`'s subclasses."""

    def __init__(self, client: Client, retries: Retries) -> None:
        self._client = client
        self.place = client.place
        self._retries = retries

    async def verify(self) -> dict[str, Any]:
        """Check that it is ours, and working; wait for one that is being created. Return how it is described."""
        description = await self.describe()
        check_keys(description, self.place)
        async for _ in self.polls("becomes active"):
            if is_working(description):
                break
            description = await self.describe()
        return description

    async def create(self, definition: Mapping[str, Any], extras: Mapping[str, Any]) -> bool:
        """Return whether it was created here: another process may have been faster. An engine for development may not
        know the extras, and then creates the table without."""
        try:
            return await self._create({**definition, **extras})
        except StoreMisconfigured as error:
            if not extras:
                raise
            self._raise_unless_optional(error)
            return await self._create(definition)

    async def turn_on_expiry(self) -> bool:
        """Return False where the engine does not know it."""
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
        """Return False where the engine does not know it."""
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
        """Return False where there was none."""
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
        """Return the attribute that items expire by."""
        ttl = (await self.call("describe_time_to_live")).get("TimeToLiveDescription") or {}
        return str(ttl["AttributeName"]) if ttl.get("TimeToLiveStatus") in _TURNED_ON else None

    async def recovery(self) -> bool:
        """Return whether it can be set back to a point in time."""
        backups = (await self.call("describe_continuous_backups")).get("ContinuousBackupsDescription") or {}
        recovery = backups.get("PointInTimeRecoveryDescription") or {}
        return recovery.get("PointInTimeRecoveryStatus") in _TURNED_ON

    async def tags(self, arn: str) -> dict[str, str]:
        """Return all of them: 50 at most, in pages of 10."""
        found: dict[str, str] = {}
        page: dict[str, Any] = {}
        while True:
            answer = await self.call("list_tags_of_resource", ResourceArn=arn, **page)
            found |= {tag["Key"]: tag["Value"] for tag in answer.get("Tags") or ()}
            if not answer.get("NextToken"):
                return found
            page = {"NextToken": answer["NextToken"]}

    async def describe(self) -> dict[str, Any]:
        """Return the table, as `DescribeTable` has it."""
        table = (await self.call("describe_table")).get("Table")
        if not table:
            raise StoreUnavailable(f"{self.place} gave an answer without a description")
        return dict(table)

    async def call(self, operation: str, **request: Any) -> dict[str, Any]:
        """Call about the table, again while it does no harm; about a resource where it is named so."""
        name = operation.title().replace("_", "")
        about = {} if "ResourceArn" in request else {"TableName": self.place.table}

        async def send() -> dict[str, Any]:
            with explained(self.place):
                return await self._client.call(name, {**about, **request})

        return await self._retries.run(name, send, on=HARMLESS)

    async def polls(self, until: str, *, within: float = POLL_TIMEOUT_S) -> AsyncIterator[float]:
        """Yield the turns of a wait that ends, with growing pauses; each is the seconds waited so far."""
        pause, waited = _MIN_PAUSE_S, 0.0
        while waited <= within:
            yield waited
            await sleep(pause)
            waited += pause
            pause = min(_MAX_PAUSE_S, pause * 1.5)
        raise WaitedInVain(f"waited in vain until {self.place} {until}; look at it again in a few minutes")

    async def _create(self, definition: Mapping[str, Any]) -> bool:
        with explained(self.place):
            try:
                await self._client.call("CreateTable", definition)
            except ClientError as error:
                if code_of(error) != "ResourceInUseException":
                    raise
                return False
        return True

    def _raise_unless_optional(self, error: StoreMisconfigured) -> None:
        """Raise, unless it is an engine for development, which need not know it."""
        if is_amazon(self.place.endpoint) or isinstance(error, _NOT_OPTIONAL):
            raise error


async def prepare(client: Client, retries: Retries, settings: Settings) -> None:
    """Verify the table, and wait for one that is being created; create it where there is none, if the settings say so.

    Raise `TableNotFound`, `TableMismatch`, `ReplicaMismatch` or `AccessDenied` where a store could not work on it.
    """
    control = Control(client, retries)
    try:
        description = await control.verify()
    except TableNotFound:
        if not settings.create:
            raise
        from ratelimit.dynamodb.table import create_on  # which few need, and which takes its time

        await create_on(client, retries)
        description = await control.verify()
    check_replicas(description, client.place, settings)
    if settings.mode is not None:
        await check_recorded_regions(control.call, client.place, settings)
