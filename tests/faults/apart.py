"""A misbehaving server in a thread of its own: it goes on while the test's loop stands still."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

from tests.faults.server import FaultServer


class Apart:
    """`with Apart() as apart:` has `apart.server` listen; `apart.do` runs its coroutines."""

    def __init__(self, server: FaultServer | None = None) -> None:
        self.server = server or FaultServer()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def do(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run it there, to its end."""
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def drop_connections(self) -> None:
        """Close every connection, as a server does with those that were idle for too long; new ones are welcome."""
        self.do(self.server.refuse())
        self.do(self.server.listen())

    def __enter__(self) -> Self:
        self._thread.start()
        self.do(self.server.listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.do(self.server.refuse())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()
