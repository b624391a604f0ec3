"""`UsageStats`: how the log stands. Each bound that may be hit has a counter that shows it was."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class UsageStats:
    """Numbers of events, since the log was made."""

    accepted: int = 0
    """Taken over: they will be written, unless the process ends before (without a journal), or `dropped` says so."""
    written: int = 0
    """In the table."""
    retried: int = 0
    """Sent again: throttled, unprocessed, or without an answer."""
    dropped: int = 0
    """Lost: no room, no time left at the end, or refused by the store. Each time with a line in the log."""
    spilled: int = 0
    """Kept in the journal only, because the queue was full; read back when there is room."""
    replayed: int = 0
    """Found in the journal of a process that ended before it had written them."""
    erased: int = 0
    """Found in a journal, and not written, because the user was erased meanwhile."""
    unjournaled: int = 0
    """Meant for the journal, and kept in memory only, because the disk did not take them."""
    torn: int = 0
    """Segments that ended in a broken record. What a record that had returned wrote is never among it."""
    damaged: int = 0
    """Segments that were damaged before their end, where records may have been; kept, with the ending `.damaged`."""
    depth: int = 0
    """Waiting in memory, now."""
    in_flight: int = 0
    """On their way to the table, now."""
    journal_bytes: int = 0
    """In the journal, now; of what dead processes left, what was found so far."""
