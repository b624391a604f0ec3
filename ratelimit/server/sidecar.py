"""`Sidecar`: the app that a worker serves, in front of whichever configuration holds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import fields, replace
from typing import TypeAlias

from msgspec import Struct
from prometheus_client import ProcessCollector
from prometheus_client.core import GaugeMetricFamily as Gauge
from prometheus_client.core import Metric
from starlette.types import ASGIApp, Receive, Scope, Send

from ratelimit.clock import Clock
from ratelimit.config import Config
from ratelimit.decision import Decision
from ratelimit.errors import ConfigError, RateLimitError, StoreMisconfigured
from ratelimit.http.lifespan import join_lifespan, no_lifespan
from ratelimit.limiter.checks import Observer
from ratelimit.metrics import DecisionMetrics, Registry, by_label
from ratelimit.server.app_version import AppFactory, AppVersion, AppVersions
from ratelimit.server.http_protocol import OnRefused, ignore_refusal
from ratelimit.server.runtime import Runtime

logger = logging.getLogger("ratelimit")


ConfigSource: TypeAlias = Callable[[], Config]
"""Reads the configuration afresh, and checks it whole. Has to pickle where there are several workers."""


class Reloaded(Struct, frozen=True):
    """What a reload came to, by the names of settings (`policies.hint`)."""

    changed: list[str]
    restart: list[str]
    """Changed in the file, and in effect after a restart only."""


class Sidecar:
    """An ASGI app whose configuration can be exchanged: no request is cut off, and no count is lost.

    Made by `ratelimit.server.sidecar`. Raises `ConfigError`.
    """

    def __init__(self, source: ConfigSource, make_app: AppFactory, *, clock: Clock | None = None) -> None:
        self.app: ASGIApp = self
        """What to serve."""
        self.refused: OnRefused = ignore_refusal
        """Told of the requests that the server answers itself."""
        self.admin: ASGIApp | None = None
        """The admin listener's app; None where it is off."""
        self.leaving = False
        """To be set when the whole service is about to end: it is not ready any longer."""
        self.running = False
        """Whether it has started, and not ended yet."""
        self.rejected = False
        """Whether the last reload was refused."""
        self.registry = Registry()
        self._source = source
        self._make_app = make_app
        self._clock = clock
        self._decisions = DecisionMetrics()
        self._reloads = {"done": 0, "rejected": 0}
        self._reloading = asyncio.Lock()
        self._has_ended = False
        self.registry.register(self, self._metrics)
        self.registry.register("decisions", self._decisions.collect)
        self.registry.register("process", ProcessCollector(registry=None).collect)
        self._versions = AppVersions(self._make(Runtime.of(source(), clock=clock)), self.registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, or the lifespan."""
        if scope["type"] == "lifespan":
            await join_lifespan(no_lifespan, scope, receive, send, start=self._start, end=self._end)
        else:
            await self._versions.current(scope, receive, send)

    @property
    def current(self) -> AppVersion:
        """The configuration at work."""
        return self._versions.current

    @property
    def requests(self) -> int:
        """Under way, of all configurations."""
        return self._versions.requests

    async def reload(self) -> Reloaded:
        """Take the configuration as it is now. Raises `ConfigError`, `StoreUnavailable`; then nothing has changed."""
        async with self._reloading:
            if self._has_ended:
                return Reloaded([], [])
            try:
                reloaded = await self._reload()
            except RateLimitError as error:
                self.rejected = True
                self._reloads["rejected"] += 1
                logger.error("the configuration was not reloaded, the last good one holds: %s", error)
                raise
            self.rejected = False
            self._reloads["done"] += 1
        logger.warning("the configuration was reloaded: %s", _summary(reloaded))
        return reloaded

    async def _reload(self) -> Reloaded:
        former = self._versions.current
        config = self._source()
        reloaded = _difference(former.runtime.config, config)
        if not reloaded.changed:
            return reloaded
        config = replace(config, admin=former.runtime.config.admin)
        runtime = Runtime.of(config, former.runtime, clock=self._clock)
        following = self._make(runtime)
        try:
            if runtime.store is not former.runtime.store or runtime.usage is not former.runtime.usage:
                # At the start a store may be out of reach; to leave one that works for it would be a mistake.
                await runtime.open()
            await following.start()
        except RateLimitError:
            await self._versions.discard(runtime)
            raise
        self._versions.replace(following)
        return reloaded

    def _make(self, runtime: Runtime) -> AppVersion:
        self._decisions.add_policies(runtime.limiter.policies)
        runtime.limiter.observer = _both(runtime.limiter.observer, self._decisions)
        return AppVersion(runtime, self._make_app(runtime))

    async def _start(self) -> None:
        try:
            async with self._reloading:
                await self._versions.current.start()
        except (StoreMisconfigured, ConfigError):
            await self._end()
            raise
        self.running = True

    async def _end(self) -> None:
        async with self._reloading:
            self.running = False
            self._has_ended = True
            await self._versions.end()

    def _metrics(self) -> list[Metric]:
        return [
            by_label("ratelimit_reloads", "Reloads of the configuration.", "result", self._reloads),
            Gauge("ratelimit_reload_rejected", "1 where the last reload was refused.", float(self.rejected)),
        ]


def _both(first: Observer | None, second: Observer) -> Observer:
    if first is None:
        return second

    def observe(decision: Decision, span: float) -> None:
        first(decision, span)
        second(decision, span)

    return observe


def _difference(former: Config, following: Config) -> Reloaded:
    names = [field.name for field in fields(Config) if field.name != "policies"]
    changed = [name for name in names if getattr(former, name) != getattr(following, name)]
    before = {policy.name: policy for policy in former.policies}
    after = {policy.name: policy for policy in following.policies}
    changed += [f"policies.{name}" for name in {**before, **after} if before.get(name) != after.get(name)]
    if not changed and list(before) != list(after):
        changed.append("policies")
    # Its socket was bound by the parent, before there was a worker.
    return Reloaded([name for name in changed if name != "admin"], [name for name in changed if name == "admin"])


def _summary(reloaded: Reloaded) -> str:
    changed = ", ".join(reloaded.changed) or "nothing has changed"
    return changed + "".join(f"; {name} takes a restart" for name in reloaded.restart)
