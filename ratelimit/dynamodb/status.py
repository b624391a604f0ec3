"""`TableStatus`: what DynamoDB says of a table, read against what this project needs of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ratelimit.dynamodb import schema
from ratelimit.dynamodb.faults import Place, key_mismatch

_WORKING: Final = ("ACTIVE", "UPDATING")

TTL_FEATURE: Final = "expiry (ttl)"
RECOVERY_FEATURE: Final = "point-in-time recovery"
ENCRYPTION_FEATURE: Final = "encryption with a key in KMS"
KMS: Final = "KMS"
INDEX_FEATURE: Final = f"index {schema.GSI1}"


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
    items: int
    """Counted by DynamoDB every six hours or so."""
    size_bytes: int
    ttl: str | None
    """The attribute that says when an item expires; None where nothing does."""
    point_in_time_recovery: bool | None
    encrypted_with: str
    missing: tuple[str, ...]
    """What the project's table has and this one lacks, in words."""
    created: bool = False
    """Whether it was this call that created it."""


def is_working(description: Mapping[str, Any]) -> bool:
    """Whether the table and its indexes take requests."""
    indexes = description.get("GlobalSecondaryIndexes") or ()
    states = [description.get("TableStatus"), *(index.get("IndexStatus", "ACTIVE") for index in indexes)]
    return all(state in _WORKING for state in states)


def check_keys(description: Mapping[str, Any], place: Place) -> None:
    """Raises `TableMismatch`."""
    found = _keys(description)
    if found != tuple(f"{name} (S)" for name, _ in schema.KEY_SCHEMA):
        raise key_mismatch(place, " and ".join(found))


def to_status(description: Mapping[str, Any], place: Place, *, ttl: str | None, recovery: bool | None) -> TableStatus:
    """A `DescribeTable` answer and what the other two calls said, put together."""
    indexes = tuple(index["IndexName"] for index in description.get("GlobalSecondaryIndexes") or ())
    encryption = description.get("SSEDescription") or {}
    lacks = {
        TTL_FEATURE: ttl != schema.TTL,
        RECOVERY_FEATURE: recovery is False,
        INDEX_FEATURE: schema.GSI1 not in indexes,
    }
    return TableStatus(
        name=place.table,
        region=place.region,
        endpoint=place.endpoint,
        status=description["TableStatus"],
        keys=_keys(description),
        indexes=indexes,
        billing=(description.get("BillingModeSummary") or {}).get("BillingMode", "PROVISIONED"),
        items=description.get("ItemCount", 0),
        size_bytes=description.get("TableSizeBytes", 0),
        ttl=ttl,
        point_in_time_recovery=recovery,
        encrypted_with=encryption.get("SSEType", "DynamoDB's own key"),
        missing=tuple(feature for feature, is_missing in lacks.items() if is_missing),
    )


def _keys(description: Mapping[str, Any]) -> tuple[str, ...]:
    types = {a["AttributeName"]: a["AttributeType"] for a in description.get("AttributeDefinitions", ())}
    ordered = sorted(description.get("KeySchema", ()), key=lambda key: key["KeyType"] != "HASH")
    return tuple(f"{key['AttributeName']} ({types.get(key['AttributeName'], '?')})" for key in ordered)
