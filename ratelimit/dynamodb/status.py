"""`TableStatus`: how a table stands, in one record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from ratelimit.dynamodb import schema
from ratelimit.dynamodb.description import billing_of, keys_of
from ratelimit.dynamodb.snapshot import Snapshot, Unknown

T = TypeVar("T")

TTL_FEATURE: Final = "expiry (ttl)"
RECOVERY_FEATURE: Final = "point-in-time recovery"
INDEX_FEATURE: Final = f"index {schema.GSI1}"
OWN_KEY: Final = "DynamoDB's own key"


@dataclass(frozen=True, slots=True, kw_only=True)
class TableStatus:
    """What is known of a table. None where the engine or the permissions do not let it be known."""

    name: str
    region: str
    endpoint: str
    status: str
    """DynamoDB's word: `ACTIVE`, `CREATING`, `UPDATING`, `DELETING`."""
    keys: tuple[str, ...]
    """The attributes of the primary key, each with its type: `PK (S)`, `SK (S)`."""
    indexes: tuple[str, ...]
    billing: str
    """DynamoDB's word: `PAY_PER_REQUEST`, `PROVISIONED`."""
    read_units: int | None
    """A second; None where it is billed on demand. So is `write_units`."""
    write_units: int | None
    items: int
    """Counted by DynamoDB every six hours or so."""
    size_bytes: int
    ttl: str | None
    """The attribute that says when an item expires; None where nothing does."""
    point_in_time_recovery: bool | None
    encrypted_with: str
    protected: bool
    """Against deletion."""
    tags: Mapping[str, str] | None
    missing: tuple[str, ...]
    """What the project's table has and this one lacks, in words."""
    unknown: Mapping[str, str]
    """The parts that could not be looked at, and why."""
    created: bool = False
    """Whether it was this call that created it."""


def to_status(description: Mapping[str, Any], snapshot: Snapshot) -> TableStatus:
    """A snapshot, and its description, which has to be known."""
    parts: dict[str, object] = {"expiry": snapshot.ttl, "recovery": snapshot.recovery, "tags": snapshot.tags}
    indexes = tuple(index["IndexName"] for index in description.get("GlobalSecondaryIndexes") or ())
    throughput = description.get("ProvisionedThroughput") or {}
    lacks = {
        TTL_FEATURE: snapshot.ttl != schema.TTL,
        RECOVERY_FEATURE: snapshot.recovery is False,
        INDEX_FEATURE: schema.GSI1 not in indexes,
    }
    return TableStatus(
        name=snapshot.place.table,
        region=snapshot.place.region,
        endpoint=snapshot.place.endpoint,
        status=description["TableStatus"],
        keys=keys_of(description, description),
        indexes=indexes,
        billing=billing_of(description),
        read_units=throughput.get("ReadCapacityUnits") or None,
        write_units=throughput.get("WriteCapacityUnits") or None,
        items=description.get("ItemCount", 0),
        size_bytes=description.get("TableSizeBytes", 0),
        ttl=_or_none(snapshot.ttl),
        point_in_time_recovery=_or_none(snapshot.recovery),
        encrypted_with=(description.get("SSEDescription") or {}).get("SSEType", OWN_KEY),
        protected=bool(description.get("DeletionProtectionEnabled")),
        tags=_or_none(snapshot.tags),
        missing=tuple(feature for feature, is_missing in lacks.items() if is_missing),
        unknown={part: value.why for part, value in parts.items() if isinstance(value, Unknown)},
    )


def _or_none(part: T | Unknown) -> T | None:
    return None if isinstance(part, Unknown) else part
