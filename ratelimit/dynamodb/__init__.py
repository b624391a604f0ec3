"""DynamoDB: the only room that knows botocore, keys and expressions."""

from ratelimit.dynamodb.faults import AnswerLost, StoreUnreachable
from ratelimit.dynamodb.settings import Settings
from ratelimit.dynamodb.spec import TableSpec
from ratelimit.dynamodb.state_store import DynamoDBStore
from ratelimit.dynamodb.stats import Stats
from ratelimit.dynamodb.status import TableStatus
from ratelimit.dynamodb.table import (
    TableProtected,
    count_items,
    create_table,
    delete_table,
    table_status,
    upgrade_table,
    verify_table,
)
from ratelimit.dynamodb.upgrade import Upgraded
from ratelimit.dynamodb.url import parse_url
from ratelimit.dynamodb.verify import Line
from ratelimit.dynamodb.whereabouts import same_table

__all__ = [
    "AnswerLost",
    "DynamoDBStore",
    "Line",
    "Settings",
    "Stats",
    "StoreUnreachable",
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
