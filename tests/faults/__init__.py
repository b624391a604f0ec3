"""A server that speaks enough of DynamoDB to be believed, and misbehaves on demand: for tests of bad days."""

from tests.faults.answers import TinyTable
from tests.faults.behaviours import (
    Behaviour,
    error,
    garbage,
    half,
    hang_up,
    held,
    internal_error,
    ok,
    slow,
    status,
    throttled,
    transaction_conflict,
)
from tests.faults.server import FaultServer

__all__ = [
    "Behaviour",
    "FaultServer",
    "TinyTable",
    "error",
    "garbage",
    "half",
    "hang_up",
    "held",
    "internal_error",
    "ok",
    "slow",
    "status",
    "throttled",
    "transaction_conflict",
]
