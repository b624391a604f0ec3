"""What a `DescribeTable` answer says, and what a store asks of it before it works on the table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ratelimit.dynamodb import schema
from ratelimit.dynamodb.faults import Place, key_mismatch

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
