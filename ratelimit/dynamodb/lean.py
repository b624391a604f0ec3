"""A client for an event loop that goes by a way found without AWS's own, which is imported for the unusual only."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from importlib import import_module
from typing import Any

from ratelimit.dynamodb.access import Client, LaterApi, ServerClock
from ratelimit.dynamodb.environment import Way
from ratelimit.dynamodb.settings import Settings


def client_by(way: Way, settings: Settings) -> Client:
    """Return a client; nothing is sent yet."""
    clock, exits = ServerClock(), AsyncExitStack()
    api = _LoopApi(settings, clock)
    exits.push_async_callback(api.close)
    return way.client(api, settings, exits, clock)


class _LoopApi(LaterApi):
    def __init__(self, settings: Settings, clock: ServerClock) -> None:
        self._settings = settings
        self._clock = clock
        self._made: asyncio.Task[Client] | None = None

    async def close(self) -> None:
        """Let go of the connections, where there are any."""
        made, self._made = self._made, None
        if made is not None:
            made.cancel()
            await asyncio.wait([made])
            if not made.cancelled() and made.exception() is None:
                await made.result().close()

    async def _ask(self, name: str, args: tuple[Any, ...], request: dict[str, Any]) -> Any:
        """One makes the client, however many ask; who gives up waiting leaves it going. Raise `StoreUnavailable`."""
        if self._made is None or (self._made.done() and (self._made.cancelled() or self._made.exception())):
            self._made = asyncio.get_running_loop().create_task(self._connect())
        client = await asyncio.shield(self._made)
        return await getattr(client.api, name)(*args, **request)

    async def _connect(self) -> Client:
        module = await asyncio.to_thread(import_module, "ratelimit.dynamodb.client")
        made: Client = await module.connect(self._settings, self._clock)
        return made
