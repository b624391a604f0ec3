"""The table itself: create it as this project needs it, look at it, verify it, upgrade it, delete it.

Everything may be done twice. Features that a development engine does not know (keys in KMS, point-in-time recovery)
are left out there and reported; on Amazon's own endpoint they are not optional.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from ratelimit.dynamodb import schema
from ratelimit.dynamodb.client import Connection, connect
from ratelimit.dynamodb.control import Control
from ratelimit.dynamodb.retries import Retries
from ratelimit.dynamodb.settings import Settings
from ratelimit.dynamodb.snapshot import Unknown, look
from ratelimit.dynamodb.spec import MODES, TableSpec
from ratelimit.dynamodb.stats import Stats
from ratelimit.dynamodb.status import RECOVERY_FEATURE, TTL_FEATURE, TableStatus, to_status
from ratelimit.dynamodb.upgrade import PATIENCE, Tell, Upgrade, Upgraded
from ratelimit.dynamodb.verify import Line, compare
from ratelimit.errors import AccessDenied, ConfigError, StoreMisconfigured, TableNotFound

_CONNECT_TIMEOUT: Final = 5.0
_READ_TIMEOUT: Final = 15.0
_ATTEMPTS: Final = 5
_USUAL: Final = TableSpec()


class TableProtected(StoreMisconfigured):
    """The table is protected against deletion."""


async def create_table(settings: Settings, spec: TableSpec = _USUAL) -> TableStatus:
    """Create the table, or complete one that exists and has our keys. Raises `TableMismatch`, `AccessDenied`, ...

    A table that exists keeps its data, billing, encryption and tags (`upgrade_table` changes those); expiry is turned
    on, and point-in-time recovery where it is asked for.
    """
    if spec.billing == "provisioned" and spec.throughput is None:
        raise ConfigError("read", "is missing: a table that is created provisioned needs its read and write units")
    async with await _connect(settings) as connection:
        return await create_on(connection, _retries(settings), spec)


async def table_status(settings: Settings) -> TableStatus:
    """How the table stands. Raises `TableNotFound`."""
    async with await _connect(settings) as connection:
        return await _status(Control(connection, _retries(settings)))


async def verify_table(settings: Settings, spec: TableSpec = _USUAL) -> tuple[Line, ...]:
    """What is, against what should be, line by line; what permissions hide is a line too. Raises `TableNotFound`."""
    async with await _connect(settings) as connection:
        return compare(await look(Control(connection, _retries(settings))), spec)


async def upgrade_table(
    settings: Settings, spec: TableSpec = _USUAL, *, tell: Tell = lambda _: None, within: float = PATIENCE
) -> Upgraded:
    """Mend what can be mended in place, waiting up to `within` seconds for each change. Raises `TableNotFound`."""
    async with await _connect(settings) as connection:
        return await Upgrade(Control(connection, _retries(settings)), spec, tell=tell, within=within).run()


async def delete_table(settings: Settings) -> bool:
    """Delete the table and all that is in it, and wait until it is gone; False where there was none.

    Raises `TableProtected`.
    """
    async with await _connect(settings) as connection:
        control = Control(connection, _retries(settings))
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


async def count_items(settings: Settings) -> tuple[int, bool]:
    """How many items there are at least, and whether that is all of them. Raises `TableNotFound`.

    The first MB is counted now (128 read units at most); of more than that DynamoDB's own count tells, which is hours
    old.
    """
    async with await _connect(settings) as connection:
        control = Control(connection, _retries(settings))
        counted = int((await control.describe()).get("ItemCount", 0))
        try:
            page = await control.call("scan", Select="COUNT")
        except AccessDenied:
            return counted, False
        if "LastEvaluatedKey" in page:
            return max(counted, page["Count"]), False
        return int(page["Count"]), True


async def create_on(connection: Connection, retries: Retries, spec: TableSpec = _USUAL) -> TableStatus:
    """As `create_table`, on a connection that is open."""
    control = Control(connection, retries)
    created = False
    try:
        await control.verify()
    except TableNotFound:
        created = await control.create(_definition(control.place.table, spec), _extras(spec))
        await control.verify()
    missing = [] if await control.turn_on_expiry() else [TTL_FEATURE]
    if spec.recovery and not await control.turn_on_recovery():
        missing.append(RECOVERY_FEATURE)
    status = await _status(control)
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


async def _status(control: Control) -> TableStatus:
    snapshot = await look(control)
    description = await control.describe() if isinstance(snapshot.table, Unknown) else snapshot.table
    return to_status(description, snapshot)


def _definition(table: str, spec: TableSpec) -> dict[str, Any]:
    """The `CreateTable` request, as every engine takes it."""
    definition = schema.table_definition(table, spec.indexes)
    if spec.throughput is not None:
        definition |= {"BillingMode": MODES["provisioned"], "ProvisionedThroughput": spec.throughput}
        for index in definition["GlobalSecondaryIndexes"]:
            index["ProvisionedThroughput"] = spec.index_throughput(index["IndexName"])
    return definition


def _extras(spec: TableSpec) -> Mapping[str, Any]:
    """What an engine for development may not know."""
    extras: dict[str, Any] = {}
    if spec.protected is not None:
        extras["DeletionProtectionEnabled"] = spec.protected
    if spec.kms_key is not None:
        extras["SSESpecification"] = spec.encryption()
    if spec.tags:
        extras["Tags"] = [{"Key": name, "Value": value} for name, value in spec.tags.items()]
    return extras


async def _connect(settings: Settings) -> Connection:
    """The control plane takes its time, which a check could not afford."""
    return await connect(replace(settings, connect_timeout=_CONNECT_TIMEOUT, read_timeout=_READ_TIMEOUT))


def _retries(settings: Settings) -> Retries:
    return Retries(max(settings.attempts, _ATTEMPTS), Stats())
