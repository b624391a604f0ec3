"""Where state lives: the `Store` contract, the `Write` it runs, and the store that needs no set-up."""

from ratelimit.cursor import Page
from ratelimit.store.base import (
    Add,
    Drop,
    EventStore,
    Expect,
    Op,
    Outcome,
    Part,
    Put,
    Record,
    Scans,
    Store,
    TableStore,
    Write,
)
from ratelimit.store.memory import MemoryEventStore, MemoryStore
from ratelimit.store.mirror import MirrorStore

__all__ = [
    "Add",
    "Drop",
    "EventStore",
    "Expect",
    "MemoryEventStore",
    "MemoryStore",
    "MirrorStore",
    "Op",
    "Outcome",
    "Page",
    "Part",
    "Put",
    "Record",
    "Scans",
    "Store",
    "TableStore",
    "Write",
]
