"""DynamoDB: the only room that knows botocore, keys and expressions."""

from ratelimit.dynamodb.calls import Stats
from ratelimit.dynamodb.errors import AnswerLost, StoreUnreachable
from ratelimit.dynamodb.session import same_table
from ratelimit.dynamodb.settings import Settings, parse_url
from ratelimit.dynamodb.store import DynamoDBStore
from ratelimit.dynamodb.table import (
    TableProtected,
    Upgraded,
    count_items,
    create_table,
    delete_table,
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
    "same_table",
    "table_status",
    "upgrade_table",
    "verify_table",
]
