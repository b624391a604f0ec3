"""Users and plans: who may do how much, read through a small cache that a failing store cannot make slow."""

from ratelimit.directory.directory import Directory
from ratelimit.directory.register import Contended, UnknownPlan, UnknownUser
from ratelimit.directory.stats import DirectoryStats
from ratelimit.store.directory import (
    DirectoryStore,
    Identity,
    IdentityTaken,
    MemoryDirectoryStore,
    Plan,
    User,
)

__all__ = [
    "Contended",
    "Directory",
    "DirectoryStats",
    "DirectoryStore",
    "Identity",
    "IdentityTaken",
    "MemoryDirectoryStore",
    "Plan",
    "UnknownPlan",
    "UnknownUser",
    "User",
]
