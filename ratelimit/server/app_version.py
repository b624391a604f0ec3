"""`AppVersions`: the configuration that holds now, and those that still have requests to finish."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from prometheus_client.core import GaugeMetricFamily as Gauge
from prometheus_client.core import Metric
from starlette.types import ASGIApp, Receive, Scope, Send

from ratelimit.factory import store_stats
from ratelimit.http.lifespan import LifespanRunner
from ratelimit.metrics import (
    Registry,
    Source,
    directory_metrics,
    limiter_metrics,
    memory_metrics,
    mirror_metrics,
    store_metrics,
    usage_metrics,
    webhook_metrics,
)
from ratelimit.server.runtime import Runtime
from ratelimit.store import MemoryStore, MirrorStore, TableStore
from ratelimit.store.delegating import layers

# `AppVersion`: one configuration at work, from its start to the end of the last request that it was asked.

AppFactory: TypeAlias = Callable[[Runtime], ASGIApp]
"""Raises `ConfigError`."""


class AppVersion:
    """An ASGI app for requests. Requests under way when the next version takes over are finished by this one."""

    def __init__(self, runtime: Runtime, app: ASGIApp) -> None:
        self.runtime = runtime
        self.requests = 0
        """Under way; websockets are among them."""
        self._app = app
        self._lifespan = LifespanRunner(app)
        self._idle = asyncio.Event()
        self._is_cut_off = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        self.requests += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self.requests -= 1
            if not self.requests:
                self._idle.set()

    async def start(self) -> None:
        """Raises `StoreMisconfigured` where waiting for the store would not help."""
        await self._lifespan.start()

    async def idle(self) -> None:
        """Returns when nothing is under way, or was cut off. It must not get new requests by then."""
        while self.requests and not self._is_cut_off:
            self._idle.clear()
            await self._idle.wait()

    def cut_off(self) -> None:
        """Nobody waits any longer for what is under way."""
        self._is_cut_off = True
        self._idle.set()

    async def end(self) -> None:
        """Refunds arrive, what was taken ahead goes back, connections to the upstream close; `runtime` stays."""
        await self._lifespan.end()


class AppVersions:
    """Parts are let go of when the last version that has them has ended; the `registry` keep what they counted."""

    def __init__(self, first: AppVersion, registry: Registry) -> None:
        self.current = first
        self._registry = registry
        self._alive = [first]
        self._retiring: set[asyncio.Task[None]] = set()
        self._enter(first.runtime)
        registry.register(self, self._metrics)

    @property
    def requests(self) -> int:
        """Under way in all of them."""
        return sum(version.requests for version in self._alive)

    def replace(self, following: AppVersion) -> None:
        """New requests go to this one, which has started. The former ends when its last request has."""
        former, self.current = self.current, following
        self._alive.append(following)
        self._enter(following.runtime)
        task = asyncio.create_task(self._retire(former))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def discard(self, runtime: Runtime) -> None:
        """One that did not come to be used."""
        await runtime.end(each.runtime for each in self._alive)

    async def end(self) -> None:
        """The server is through with its requests: whatever is still under way was cut off."""
        for version in self._alive:
            version.cut_off()
        await asyncio.gather(*self._retiring)
        await self._finish(self.current)

    async def _retire(self, version: AppVersion) -> None:
        await version.idle()
        await self._finish(version)

    async def _finish(self, version: AppVersion) -> None:
        await version.end()
        self._alive.remove(version)
        others = [each.runtime for each in self._alive]
        await version.runtime.end(others)
        held = {part for runtime in others for part in _parts(runtime)}
        for part in _parts(version.runtime):
            if part not in held:
                self._registry.retire(part)

    def _enter(self, runtime: Runtime) -> None:
        for part, source in _parts(runtime).items():
            self._registry.register(part, source)

    def _metrics(self) -> list[Metric]:
        alive = len(self._alive)
        return [
            Gauge("ratelimit_requests_in_progress", "Requests and websockets under way.", self.requests),
            Gauge("ratelimit_configurations", "Configurations at work, those included that are ending.", alive),
        ]


def _parts(runtime: Runtime) -> dict[object, Source]:
    """What is counted of a runtime, by the part that counts it."""
    found: dict[object, Source] = {runtime.limiter: partial(limiter_metrics, runtime.limiter)}
    found[runtime.store] = partial(_metrics_of, runtime.store)
    if (usage := runtime.usage) is not None:
        found[usage] = lambda: usage_metrics(usage.stats)
    if (directory := runtime.directory) is not None:
        found[directory] = lambda: directory_metrics(directory.stats)
    if (webhook := runtime.webhook) is not None:
        found[webhook] = lambda: webhook_metrics(webhook.sent, webhook.failed)
    return found


def _metrics_of(store: TableStore) -> list[Metric]:
    found: list[Metric] = []
    for layer in layers(store):
        if isinstance(layer, MirrorStore):
            found += mirror_metrics(layer.stats)
        elif isinstance(layer, MemoryStore):
            found += memory_metrics(layer)
    stats = store_stats(store)
    return found if stats is None else [*store_metrics(stats), *found]
