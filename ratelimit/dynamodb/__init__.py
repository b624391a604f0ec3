"""DynamoDB: the only room that knows botocore, keys and expressions."""

from ratelimit.dynamodb.faults import AnswerLost, StoreUnreachable
from ratelimit.dynamodb.settings import Settings
from ratelimit.dynamodb.state_store import DynamoDBStore
from ratelimit.dynamodb.stats import Stats
from ratelimit.dynamodb.status import TableStatus
from ratelimit.dynamodb.table import create_table, delete_table, table_status
from ratelimit.dynamodb.url import parse_url

__all__ = [
    "AnswerLost",
    "DynamoDBStore",
    "Settings",
    "Stats",
    "StoreUnreachable",
    "TableStatus",
    "create_table",
    "delete_table",
    "parse_url",
    "table_status",
]
