"""DynamoDB's control plane, as far as one table needs it: calls that may be repeated, waits that end.

And the table's replicas in other regions: whether what is configured can keep its promise on them. Unless a table is
strongly consistent over its regions, the last writer of an item wins: two regions that count in one item lose what one
of them has counted, and admit more than the quota.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Final, TypeAlias

from botocore.exceptions import ClientError

from ratelimit.blocking import importing, sleep
from ratelimit.dynamodb import schema
from ratelimit.dynamodb.access import Client
from ratelimit.dynamodb.calls import HARMLESS, Retries
from ratelimit.dynamodb.errors import Place, code_of, explained, key_mismatch
from ratelimit.dynamodb.settings import Settings, is_amazon
from ratelimit.errors import (
    AccessDenied,
    ReplicaMismatch,
    StoreMisconfigured,
    StoreThrottled,
    StoreUnavailable,
    TableMismatch,
    TableNotFound,
)
from ratelimit.regions.regions import PROMISES, RegionsMode, not_in_list

CallTable: TypeAlias = Callable[..., Awaitable[dict[str, Any]]]
"""Sends an operation about the table, by its name, with the rest of the request as keywords."""

_KEY: Final = schema.item_key(schema.REGIONS, schema.META)
_LEGACY: Final = "2017.11.29"
_GONE: Final = ("DELETING", "CREATION_FAILED", "REGION_DISABLED")


def replicas_of(table: Mapping[str, Any], region: str) -> tuple[str, ...]:
    """Return the regions of a table that is described in `region`, that one among them; () where it has one only."""
    others = {
        replica["RegionName"] for replica in table.get("Replicas") or () if replica.get("ReplicaStatus") not in _GONE
    }
    others.discard(region)
    return tuple(sorted({region, *others})) if others else ()


def is_strong(table: Mapping[str, Any]) -> bool:
    return table.get("MultiRegionConsistency") == "STRONG"


def check_replicas(table: Mapping[str, Any], place: Place, settings: Settings) -> None:
    problem = replicas_problem(table, place, settings.mode, settings.regions)
    if problem is not None:
        raise ReplicaMismatch(f"{place} {problem}")


def replicas_problem(
    table: Mapping[str, Any], place: Place, mode: RegionsMode | None, regions: tuple[str, ...]
) -> str | None:
    """Return what is wrong with a table's replicas, and what to do; None where nothing is.

    An engine for development may tell of none: what it does not tell is taken to be as configured.
    """
    if table.get("GlobalTableVersion") == _LEGACY:
        return f"is a global table of version {_LEGACY}, on which nothing is kept: update it to 2019.11.21"
    found = replicas_of(table, place.region)
    if mode is None:
        return None if not found else _no_mode(found, is_strong(table))
    if place.region not in regions:
        return f"was opened in a region that does not count: {not_in_list(place.region, regions)}"
    missing = [region for region in regions if region not in (found or (place.region,))]
    if missing and (found or is_amazon(place.endpoint)):
        return (
            f"has no replica in {', '.join(missing)}: add it to the table (it fills by itself), "
            "or take the region out of the list, in the configuration of every process"
        )
    if mode == "strong" and found and not is_strong(table):
        return (
            "is eventually consistent over its regions, and mode = 'strong' needs multi-region strong consistency, "
            "which a table has from its making or never: make another one, or choose mode = 'home'"
        )
    return None


def shown_replicas(table: Mapping[str, Any], place: Place, mode: RegionsMode | None) -> str:
    found = ", ".join(replicas_of(table, place.region)) or "none told of"
    consistency = "strongly consistent" if is_strong(table) else "the last writer of an item wins"
    return f"{found}; {consistency}" + ("" if mode is None else f"; {mode}: {PROMISES[mode]}")


def _no_mode(found: tuple[str, ...], strong: bool) -> str:
    listed = ", ".join(f"'{region}'" for region in found)
    if strong:
        return f"has replicas that are strongly consistent: say regions = {{ mode = 'strong', all = [{listed}] }}"
    return (
        f"has replicas in {', '.join(found)}, where the last writer of an item wins: regions that count in one item "
        f"lose what others have counted, and admit too much. Say how: regions = {{ mode = 'home', all = [{listed}] }}; "
        "with one region in the list, that one counts for all, and the other replicas only hold copies"
    )


async def check_recorded_regions(call: CallTable, place: Place, settings: Settings) -> None:
    """Record in the table how its regions count, where nothing is recorded yet. Raise `ReplicaMismatch` for processes
    that do not agree: two homes of one user are two counts."""
    found, wanted = await recorded_and_wanted(call, settings)
    if found is None:
        with suppress(StoreMisconfigured):  # somebody was faster, or this role only reads
            await call("put_item", Item=_record(settings), ConditionExpression=f"attribute_not_exists({schema.PK})")
        found, _ = await recorded_and_wanted(call, settings)
    if found is not None and found != wanted:
        raise ReplicaMismatch(
            f"{place} is counted by {found}, and this process would by {wanted}: have all processes say the same; to "
            "change it, stop them all, run `ratelimit table regions --change` with the new setting, and start them"
        )


async def recorded_and_wanted(call: CallTable, settings: Settings, *, change: bool = False) -> tuple[str | None, str]:
    """Return how the regions count, None where that is not recorded, and how the settings say; with `change` record
    that."""
    item = (await call("get_item", Key=_KEY, ConsistentRead=True)).get("Item")
    if change:
        await call("put_item", Item=_record(settings))
    return None if item is None else _shown(item), _shown(_record(settings))


def _record(settings: Settings) -> dict[str, Any]:
    texts = {schema.TYPE: schema.REGIONS_TYPE, schema.MODE: str(settings.mode), schema.ALL: ",".join(settings.regions)}
    if settings.shares:
        texts[schema.SHARES] = ",".join(map(str, settings.shares))
    if settings.failover:
        texts[schema.FAILOVER] = "on"
    return {**_KEY, **{name: {"S": text} for name, text in texts.items()}}


def _shown(item: Mapping[str, Any]) -> str:
    shares = f", shared {item[schema.SHARES]['S']}" if schema.SHARES in item else ""
    failover = ", with failover" if schema.FAILOVER in item else ""
    return f"mode = {item[schema.MODE]['S']!r} over {item[schema.ALL]['S']}{shares}{failover}"


_WORKING: Final = ("ACTIVE", "UPDATING")
_AT_REST: Final = ("ENABLED", "DISABLED")


def is_settled(description: Mapping[str, Any]) -> bool:
    """Return whether nothing is being changed any more: the table, its indexes, its encryption."""
    encryption = (description.get("SSEDescription") or {}).get("Status", "ENABLED")
    return all(state == "ACTIVE" for state in _states(description)) and encryption in _AT_REST


def _states(description: Mapping[str, Any]) -> list[str | None]:
    indexes = description.get("GlobalSecondaryIndexes") or ()
    return [description.get("TableStatus"), *(index.get("IndexStatus", "ACTIVE") for index in indexes)]


def keys_of(description: Mapping[str, Any], part: Mapping[str, Any]) -> tuple[str, ...]:
    types = {a["AttributeName"]: a["AttributeType"] for a in description.get("AttributeDefinitions", ())}
    ordered = sorted(part.get("KeySchema", ()), key=lambda key: key["KeyType"] != "HASH")
    return tuple(f"{key['AttributeName']} ({types.get(key['AttributeName'], '?')})" for key in ordered)


def indexes_of(description: Mapping[str, Any]) -> tuple[str, ...]:
    # Engines tell them in any order.
    return tuple(sorted(index["IndexName"] for index in description.get("GlobalSecondaryIndexes") or ()))


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
        if (found := keys_of(description, description)) != tuple(f"{name} (S)" for name, _ in schema.KEY_SCHEMA):
            raise key_mismatch(self.place, " and ".join(found))
        async for _ in self.polls("becomes active"):
            if all(state in _WORKING for state in _states(description)):
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
        ttl = (await self.call("describe_time_to_live")).get("TimeToLiveDescription") or {}
        return str(ttl["AttributeName"]) if ttl.get("TimeToLiveStatus") in _TURNED_ON else None

    async def recovery(self) -> bool:
        backups = (await self.call("describe_continuous_backups")).get("ContinuousBackupsDescription") or {}
        recovery = backups.get("PointInTimeRecoveryDescription") or {}
        return recovery.get("PointInTimeRecoveryStatus") in _TURNED_ON

    async def tags(self, arn: str) -> dict[str, str]:
        found: dict[str, str] = {}
        page: dict[str, Any] = {}
        while True:
            answer = await self.call("list_tags_of_resource", ResourceArn=arn, **page)
            found |= {tag["Key"]: tag["Value"] for tag in answer.get("Tags") or ()}
            if not answer.get("NextToken"):
                return found
            page = {"NextToken": answer["NextToken"]}

    async def describe(self) -> dict[str, Any]:
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
        with importing:
            from ratelimit.dynamodb.table import create_on  # which few need, and which takes its time

        await create_on(client, retries, settings)
        description = await control.verify()
    check_replicas(description, client.place, settings)
    if settings.mode is not None:
        await check_recorded_regions(control.call, client.place, settings)
