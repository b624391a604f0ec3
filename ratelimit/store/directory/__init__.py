"""Users and plans: the values, the `DirectoryStore` contract, and the one that needs no set-up."""

from ratelimit.store.directory.base import (
    DirectoryStore,
    Entry,
    IdentityTaken,
    Page,
    UnreadableEntry,
    check_limit,
    check_pair,
    name_of,
    next_version,
)
from ratelimit.store.directory.cursor import decode_cursor, encode_cursor
from ratelimit.store.directory.entries import Plan, Role, User, check_plan
from ratelimit.store.directory.identity import Identity, IdentityKind
from ratelimit.store.directory.memory import MemoryDirectoryStore

__all__ = [
    "DirectoryStore",
    "Entry",
    "Identity",
    "IdentityKind",
    "IdentityTaken",
    "MemoryDirectoryStore",
    "Page",
    "Plan",
    "Role",
    "UnreadableEntry",
    "User",
    "check_limit",
    "check_pair",
    "check_plan",
    "decode_cursor",
    "encode_cursor",
    "name_of",
    "next_version",
]
