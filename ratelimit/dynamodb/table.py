"""The table itself: create it as this project needs it, look at it, verify it, upgrade it, delete it.

Everything may be done twice. Features that a development engine does not know (keys in KMS, point-in-time recovery)
are left out there and reported; on Amazon's own endpoint they are not optional.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias, TypeVar

from ratelimit.dynamodb import schema
from ratelimit.dynamodb.access import Client, connect
from ratelimit.dynamodb.calls import Retries, Stats
from ratelimit.dynamodb.control import (
    Control,
    WaitedInVain,
    billing_of,
    check_replicas,
    indexes_of,
    is_settled,
    is_strong,
    recorded_and_wanted,
)
from ratelimit.dynamodb.settings import Settings, is_amazon
from ratelimit.dynamodb.table_diff import (
    MODES,
    RECOVERY_FEATURE,
    TTL_FEATURE,
    TableDiff,
    TablePart,
    TableSnapshot,
    TableSpec,
    TableStatus,
    Unknown,
    compare,
    to_status,
)
from ratelimit.errors import AccessDenied, ConfigError, StoreMisconfigured, StoreThrottled, TableMismatch, TableNotFound

T = TypeVar("T")
Tell: TypeAlias = Callable[[str], object]
"""Takes a line of progress, for a person."""

UPGRADE_TIMEOUT_S: Final = 600.0
"""That each change is waited for, unless the caller says otherwise. A large index takes hours to fill."""

_MAX_SILENCE_S: Final = 10.0
# What one part's trouble may be, without the others having to wait for it.
_TROUBLE: Final = (StoreMisconfigured, StoreThrottled, WaitedInVain)


@dataclass(frozen=True, slots=True, kw_only=True)
class Upgraded:
    """What was done, what could not be, and how the table compares now."""

    mended: tuple[str, ...]
    """The names of the lines that were changed."""
    failed: Mapping[str, str]
    """The names of the lines that could not be, and why."""
    lines: tuple[TableDiff, ...]


class Upgrade:
    def __init__(
        self, control: Control, spec: TableSpec, *, tell: Tell = lambda _: None, within: float = UPGRADE_TIMEOUT_S
    ) -> None:
        self._control = control
        self._spec = spec
        self._tell = tell
        self._within = within
        # What frees a table to be changed comes first, what takes longest comes last.
        self._menders: dict[TablePart, Callable[[TableDiff], Awaitable[None]]] = {
            "protection": self._protection,
            "expiry": self._expiry,
            "recovery": self._recovery,
            "tag": self._tag,
            "billing": self._billing,
            "encryption": self._encryption,
            "index": self._index,
        }

    async def run(self) -> Upgraded:
        """Mend what can be. Raises `TableNotFound`, and what no part alone is to blame for."""
        mended: list[str] = []
        failed: dict[str, str] = {}
        to_mend = [line for line in compare(await look(self._control), self._spec) if line.mendable]
        order = list(self._menders)
        for line in sorted(to_mend, key=lambda line: order.index(line.part)):
            self._tell(f"{line.name}: {line.found}, should be {line.wanted}")
            try:
                await self._menders[line.part](line)
            except TableNotFound:
                raise
            except _TROUBLE as error:
                failed[line.name] = str(error)
                self._tell(f"{line.name}: {error}")
            else:
                mended.append(line.name)
                self._tell(f"{line.name}: done")
        lines = compare(await look(self._control), self._spec)
        return Upgraded(mended=tuple(mended), failed=failed, lines=lines)

    async def _protection(self, line: TableDiff) -> None:
        await self._update(line, DeletionProtectionEnabled=self._spec.protected)

    async def _expiry(self, _: TableDiff) -> None:
        self._check(await self._control.turn_on_expiry())

    async def _recovery(self, _: TableDiff) -> None:
        self._check(await self._control.turn_on_recovery())

    def _check(self, is_on: bool) -> None:
        """Raise where an engine for development told how a thing stands, and does not let it be changed."""
        if not is_on:
            raise StoreMisconfigured(f"{self._control.place} does not let it be turned on")

    async def _tag(self, line: TableDiff) -> None:
        arn = (await self._control.describe())["TableArn"]
        name = line.name.removeprefix("tag ")
        await self._control.call("tag_resource", ResourceArn=arn, Tags=[{"Key": name, "Value": self._spec.tags[name]}])

    async def _billing(self, line: TableDiff) -> None:
        mode, throughput = MODES[self._spec.billing or "on-demand"], self._spec.throughput
        if throughput is None:
            await self._update(line, BillingMode=mode)
            return
        table = await self._control.describe()
        changes: dict[str, Any] = {"BillingMode": mode, "ProvisionedThroughput": throughput}
        indexes = indexes_of(table)
        if indexes and billing_of(table) != mode:  # a table that turns to units needs them for its indexes as well
            changes["GlobalSecondaryIndexUpdates"] = [
                {"Update": {"IndexName": name, "ProvisionedThroughput": self._spec.index_throughput(name)}}
                for name in indexes
            ]
        await self._update(line, **changes)

    async def _encryption(self, line: TableDiff) -> None:
        await self._update(line, SSESpecification=self._spec.encryption())

    async def _index(self, line: TableDiff) -> None:
        """Make one index, as DynamoDB makes one at a time."""
        name = line.name.removeprefix("index ")
        table = await self._control.describe()
        index = schema.index_definition(name)
        if billing_of(table) == MODES["provisioned"]:
            found = table["ProvisionedThroughput"]
            units = {unit: found[unit] for unit in ("ReadCapacityUnits", "WriteCapacityUnits")}
            index["ProvisionedThroughput"] = self._spec.index_throughput(name) or units
        await self._update(
            line,
            AttributeDefinitions=schema.attribute_definitions((name,)),
            GlobalSecondaryIndexUpdates=[{"Create": index}],
        )

    async def _update(self, line: TableDiff, **changes: Any) -> None:
        """Change the table. DynamoDB takes one change at a time, and it may have been at another when we came."""
        await self._settle(line, "is done with an earlier change")
        await self._control.call("update_table", **changes)
        await self._settle(line, f"has changed ({line.name})")

    async def _settle(self, line: TableDiff, until: str) -> None:
        said, told_at = "", 0.0
        async for waited in self._control.polls(until, within=self._within):
            table = await self._control.describe()
            if is_settled(table):
                return
            state = _state(table)
            if state != said or waited - told_at >= _MAX_SILENCE_S:
                self._tell(f"{line.name}: {state}, {waited:.0f} s so far")
                said, told_at = state, waited


def _state(table: Mapping[str, Any]) -> str:
    """Tell what is still going on: `table UPDATING, index GSI1 CREATING (filling)`."""
    states = [] if table["TableStatus"] == "ACTIVE" else [f"table {table['TableStatus']}"]
    for index in table.get("GlobalSecondaryIndexes") or ():
        if index.get("IndexStatus", "ACTIVE") != "ACTIVE":
            filling = " (filling)" if index.get("Backfilling") else ""
            states.append(f"index {index['IndexName']} {index['IndexStatus']}{filling}")
    return ", ".join(states) or f"encryption {(table.get('SSEDescription') or {}).get('Status')}"


_CONNECT_TIMEOUT_S: Final = 5.0
_READ_TIMEOUT_S: Final = 15.0
_ATTEMPTS: Final = 5
_DEFAULT_SPEC: Final = TableSpec()


class TableProtected(StoreMisconfigured):
    """The table is protected against deletion."""


async def create_table(settings: Settings, spec: TableSpec = _DEFAULT_SPEC) -> TableStatus:
    """Create the table, or complete one that exists and has our keys. Raises `TableMismatch`, `AccessDenied`, ...

    A table that exists keeps its data, billing, encryption and tags (`upgrade_table` changes those); expiry is turned
    on, and point-in-time recovery where it is asked for.
    """
    if spec.billing == "provisioned" and spec.throughput is None:
        raise ConfigError("read", "is missing: a table that is created provisioned needs its read and write units")
    async with _control(settings) as control:
        return await _create(control, _wanted(spec, settings))


async def table_status(settings: Settings) -> TableStatus:
    """Tell how the table stands. Raise `TableNotFound`."""
    async with _control(settings) as control:
        return await _status(control, _wanted(_DEFAULT_SPEC, settings))


async def verify_table(settings: Settings, spec: TableSpec = _DEFAULT_SPEC) -> tuple[TableDiff, ...]:
    """Compare what is with what should be, part by part; what permissions hide is told, too. Raise `TableNotFound`."""
    async with _control(settings) as control:
        return compare(await look(control), _wanted(spec, settings))


async def upgrade_table(
    settings: Settings,
    spec: TableSpec = _DEFAULT_SPEC,
    *,
    tell: Tell = lambda _: None,
    within: float = UPGRADE_TIMEOUT_S,
) -> Upgraded:
    """Mend what can be mended in place, waiting up to `within` seconds for each change. Raises `TableNotFound`."""
    async with _control(settings) as control:
        return await Upgrade(control, _wanted(spec, settings), tell=tell, within=within).run()


def _wanted(spec: TableSpec, settings: Settings) -> TableSpec:
    """Return what is asked for, with what the settings need."""
    gsi2 = spec.gsi2 or settings.timelines
    return replace(spec, gsi2=gsi2, regions=settings.regions, mode=settings.mode)


async def delete_table(settings: Settings) -> bool:
    """Delete the table and all that is in it, and wait until it is gone; False where there was none.

    Raises `TableProtected`.
    """
    async with _control(settings) as control:
        try:
            table = await control.describe()
        except TableNotFound:
            return False
        if table.get("DeletionProtectionEnabled"):
            raise TableProtected(
                f"{control.place} is protected against deletion, and nothing was deleted; "
                f"if it has to go, run `ratelimit table upgrade {control.place.table} --no-protect` first"
            )
        return await control.delete()


async def regions_of_table(settings: Settings, *, change: bool = False) -> tuple[str | None, str]:
    """Return how the regions of the table count, None where that is not recorded, and how they are configured to.

    With `change` that is recorded. Every process has to be stopped then, or some users are counted in two places.
    """
    async with _control(settings) as control:
        check_replicas(await control.verify(), control.place, settings)
        return await recorded_and_wanted(control.call, settings, change=change)


async def count_items(settings: Settings) -> tuple[int, bool]:
    """Return how many items there are at least, and whether that is all of them. Raise `TableNotFound`.

    The first MB is counted now (128 read units at most); of more than that DynamoDB's own count tells, which is hours
    old.
    """
    async with _control(settings) as control:
        counted = int((await control.describe()).get("ItemCount", 0))
        try:
            page = await control.call("scan", Select="COUNT")
        except AccessDenied:
            return counted, False
        if "LastEvaluatedKey" in page:
            return max(counted, page["Count"]), False
        return int(page["Count"]), True


async def create_on(client: Client, retries: Retries, settings: Settings) -> TableStatus:
    return await _create(Control(client, retries), _wanted(_DEFAULT_SPEC, settings))


async def _create(control: Control, spec: TableSpec) -> TableStatus:
    created = False
    try:
        table = await control.verify()
    except TableNotFound:
        created = await control.create(_definition(control.place.table, spec), _extras(spec))
        table = await control.verify()
    missing = [] if is_strong(table) or await control.turn_on_expiry() else [TTL_FEATURE]
    if spec.recovery and not await control.turn_on_recovery():
        missing.append(RECOVERY_FEATURE)
    status = await _status(control, spec)
    return replace(status, created=created, missing=tuple(dict.fromkeys((*missing, *status.missing))))


async def _status(control: Control, spec: TableSpec) -> TableStatus:
    snapshot = await look(control)
    description = await control.describe() if isinstance(snapshot.table, Unknown) else snapshot.table
    return to_status(description, snapshot, spec)


def _definition(table: str, spec: TableSpec) -> dict[str, Any]:
    """Return the `CreateTable` request, as every engine takes it."""
    definition = schema.table_definition(table, spec.indexes)
    if spec.throughput is not None:
        definition |= {"BillingMode": MODES["provisioned"], "ProvisionedThroughput": spec.throughput}
        for index in definition["GlobalSecondaryIndexes"]:
            index["ProvisionedThroughput"] = spec.index_throughput(index["IndexName"])
    return definition


def _extras(spec: TableSpec) -> Mapping[str, Any]:
    extras: dict[str, Any] = {}
    if spec.protected is not None:
        extras["DeletionProtectionEnabled"] = spec.protected
    if spec.kms_key is not None:
        extras["SSESpecification"] = spec.encryption()
    if spec.tags:
        extras["Tags"] = [{"Key": name, "Value": value} for name, value in spec.tags.items()]
    return extras


@asynccontextmanager
async def _control(settings: Settings) -> AsyncIterator[Control]:
    """The control plane takes its time, which a check could not afford."""
    patient = replace(settings, connect_timeout=_CONNECT_TIMEOUT_S, read_timeout=_READ_TIMEOUT_S)
    async with await connect(patient) as client:
        yield Control(client, Retries(max(settings.attempts, _ATTEMPTS), Stats()))


async def look(control: Control) -> TableSnapshot:
    """Look at each part, in four calls; leave out what is forbidden or not known here. Raise what else goes wrong."""
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
