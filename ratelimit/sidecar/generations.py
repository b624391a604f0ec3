"""`Generations`: the configuration that holds now, and those that still have requests to finish."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from ratelimit.metrics import Books, Family
from ratelimit.metrics.families import gauge
from ratelimit.metrics.readings import (
    of_directory,
    of_limiter,
    of_memory,
    of_mirror,
    of_store,
    of_usage,
    of_webhook,
)
from ratelimit.sidecar.base import Base
from ratelimit.sidecar.generation import Generation
from ratelimit.store import MemoryStore, MirrorStore, TableStore
from ratelimit.store.pseudonyms import PseudonymousStore
from ratelimit.wiring import store_stats


class Generations:
    """Parts are let go of when the last generation that has them has ended; the `books` keep what they counted."""

    def __init__(self, first: Generation, books: Books) -> None:
        self.current = first
        self._books = books
        self._alive = [first]
        self._retiring: set[asyncio.Task[None]] = set()
        self._enter(first.base)
        books.keep(self, self._families)

    @property
    def requests(self) -> int:
        """Under way in all of them."""
        return sum(generation.requests for generation in self._alive)

    def replace(self, following: Generation) -> None:
        """New requests go to this one, which has started. The former ends when its last request has."""
        former, self.current = self.current, following
        self._alive.append(following)
        self._enter(following.base)
        task = asyncio.create_task(self._retire(former))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def discard(self, base: Base) -> None:
        """One that did not come to be used."""
        await base.end(each.base for each in self._alive)

    async def end(self) -> None:
        """The server is through with its requests: whatever is still under way was cut off."""
        for generation in self._alive:
            generation.cut_off()
        await asyncio.gather(*self._retiring)
        await self._finish(self.current)

    async def _retire(self, generation: Generation) -> None:
        await generation.idle()
        await self._finish(generation)

    async def _finish(self, generation: Generation) -> None:
        await generation.end()
        self._alive.remove(generation)
        others = [each.base for each in self._alive]
        await generation.base.end(others)
        held = {part for base in others for part in _parts(base)}
        for part in _parts(generation.base):
            if part not in held:
                self._books.retire(part)

    def _enter(self, base: Base) -> None:
        for part, source in _parts(base).items():
            self._books.keep(part, source)

    def _families(self) -> list[Family]:
        alive = len(self._alive)
        return [
            gauge("ratelimit_requests_in_progress", "Requests and websockets under way.", self.requests),
            gauge("ratelimit_configurations", "Configurations at work, those included that are ending.", alive),
        ]


def _parts(base: Base) -> dict[object, Callable[[], list[Family]]]:
    """What is counted of a base, by the part that counts it."""
    found: dict[object, Callable[[], list[Family]]] = {base.limiter: partial(of_limiter, base.limiter)}
    found[base.store] = partial(_of_store, base.store)
    if (usage := base.usage) is not None:
        found[usage] = lambda: of_usage(usage.stats)
    if (directory := base.directory) is not None:
        found[directory] = lambda: of_directory(directory.stats)
    if (webhook := base.webhook) is not None:
        found[webhook] = lambda: of_webhook(webhook.sent, webhook.failed)
    return found


def _of_store(store: TableStore) -> list[Family]:
    if isinstance(store, PseudonymousStore):
        return _of_store(store.inner)
    if isinstance(store, MirrorStore):
        return [*_of_store(store.primary), *of_mirror(store.stats)]
    if isinstance(store, MemoryStore):
        return of_memory(store)
    stats = store_stats(store)
    return [] if stats is None else of_store(stats)
