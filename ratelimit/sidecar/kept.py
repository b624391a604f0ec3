"""What stays open when a limiter closes, because the next one counts there too. `Base` ends it when nobody does."""

from __future__ import annotations

from ratelimit.store import TableStore
from ratelimit.usage import UsageLog


class KeptStore:
    """A store behind a `close` that does nothing. Not for the embedded one, which the limiter has to recognise."""

    def __init__(self, store: TableStore) -> None:
        self.open = store.open
        self.apply = store.apply
        self.read = store.read
        self.delete = store.delete
        self.events = store.events
        self.directory = store.directory
        self.scans = store.scans
        self.erase = store.erase

    async def close(self) -> None:
        """Left to `Base`."""


class KeptLog(UsageLog):
    """A usage log that goes on: what waits in its memory would otherwise be lost where the store is down just then."""

    async def close(self) -> None:
        """Left to `Base`."""

    async def end(self) -> None:
        """Write what waits, for at most its grace."""
        await super().close()
