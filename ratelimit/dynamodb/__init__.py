"""DynamoDB: the only room that knows botocore, keys and expressions. Each name is imported when it is asked for: what a
check needs does without AWS's client, where the environment says all."""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from ratelimit.dynamodb.calls import Stats
    from ratelimit.dynamodb.errors import AnswerLost, StoreUnreachable
    from ratelimit.dynamodb.scans import sweep_table
    from ratelimit.dynamodb.session import same_table
    from ratelimit.dynamodb.settings import Settings, parse_url
    from ratelimit.dynamodb.store import DynamoDBStore
    from ratelimit.dynamodb.table import (
        TableProtected,
        Upgraded,
        count_items,
        create_table,
        delete_table,
        regions_of_table,
        table_status,
        upgrade_table,
        verify_table,
    )
    from ratelimit.dynamodb.table_diff import TableDiff, TableSpec, TableStatus

__all__ = [
    "AnswerLost",
    "DynamoDBStore",
    "Settings",
    "Stats",
    "StoreUnreachable",
    "TableDiff",
    "TableProtected",
    "TableSpec",
    "TableStatus",
    "Upgraded",
    "count_items",
    "create_table",
    "delete_table",
    "parse_url",
    "regions_of_table",
    "same_table",
    "sweep_table",
    "table_status",
    "upgrade_table",
    "verify_table",
]

_HOMES: Final = {
    "calls": ("Stats",),
    "errors": ("AnswerLost", "StoreUnreachable"),
    "scans": ("sweep_table",),
    "session": ("same_table",),
    "settings": ("Settings", "parse_url"),
    "store": ("DynamoDBStore",),
    "table_diff": ("TableDiff", "TableSpec", "TableStatus"),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = next((home for home, names in _HOMES.items() if name in names), "table")
    found = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
    return found
