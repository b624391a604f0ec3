"""Where state lives: the `Store` contract, the `Write` it runs, and the store that needs no set-up."""

from ratelimit.store.base import Store, TableStore
from ratelimit.store.events import EventStore, MemoryEventStore
from ratelimit.store.memory import MemoryStore
from ratelimit.store.mirror import MirrorStore
from ratelimit.store.scans import Part, ScanPage, Scans
from ratelimit.store.write import Add, Drop, Expect, Op, Outcome, Put, Record, Write

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
    "Part",
    "Put",
    "Record",
    "ScanPage",
    "Scans",
    "Store",
    "TableStore",
    "Write",
]
