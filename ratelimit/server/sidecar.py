"""`Sidecar`: what a worker serves, by whichever configuration holds; and `Runtime`: what one of them works with,
and hands on to the next."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from msgspec import Struct

from ratelimit.config import Config
from ratelimit.directory import Directory
from ratelimit.errors import ConfigError, RateLimitError, StoreMisconfigured
from ratelimit.factory import build_limiter, build_usage_log, working_store
from ratelimit.http.problems import Problem
from ratelimit.limiter import Limiter
from ratelimit.limiter.checker import Observer
from ratelimit.live import LiveRecorder
from ratelimit.metrics import (
    DecisionMetrics,
    Family,
    Registry,
    Source,
    add_observer,
    by_label,
    envoy_metrics,
    gauge,
    parts,
    webhook_metrics,
)
from ratelimit.names import Key
from ratelimit.otel import Instruments
from ratelimit.policy import timelines_of
from ratelimit.prometheus import process_families
from ratelimit.server.access_log import AccessLog
from ratelimit.server.asgi import AsgiService
from ratelimit.server.connection import ClientConnection
from ratelimit.server.exchange import Exchange
from ratelimit.server.listener import Service
from ratelimit.server.request import Request
from ratelimit.server.webhook import Webhook
from ratelimit.store import MemoryStore, TableStore
from ratelimit.store.base import Outcome, Write
from ratelimit.store.delegating import DelegatingStore
from ratelimit.tasks import Tasks
from ratelimit.usage import UsageLog

if TYPE_CHECKING:
    from ratelimit.envoy.service import RateLimitService

logger = logging.getLogger("ratelimit")

_MAX_SHOWN: Final = 20
"""Settings that a line of the log names."""

T = TypeVar("T")

ConfigSource: TypeAlias = Callable[[], Config]
"""Reads the configuration afresh, and checks it whole. Has to pickle where there are several workers."""
ServiceFactory: TypeAlias = Callable[["Runtime"], Service]
"""Raises `ConfigError`."""


class UnclosableStore(DelegatingStore):
    """A store that stays open when its limiter closes, as the next one counts there too. It tells of its writes.

    Not for the embedded one, which the limiter has to recognise.
    """

    on_write: Callable[[Key], object] | None = None

    async def close(self) -> None:
        """Leave that to `Runtime.end`."""

    def apply(self, key: Key, write: Write, *, now: int) -> Coroutine[Any, Any, Outcome]:
        if self.on_write is not None:
            self.on_write(key)
        return self.inner.apply(key, write, now=now)

    async def apply_all(self, writes: Sequence[tuple[Key, Write]], *, now: int) -> Sequence[Outcome]:
        if self.on_write is not None:
            for key, _ in writes:
                self.on_write(key)
        return await self.inner.apply_all(writes, now=now)


class UnclosableLog(UsageLog):
    """A usage log that goes on: what waits in its memory would otherwise be lost where the store is down just then."""

    async def close(self) -> None:
        """Leave that to `Runtime.end`."""

    async def end(self) -> None:
        """Write what waits, for at most its grace."""
        await super().close()


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Runtime:
    """The parts that cost something to begin anew, and the limiter on them."""

    config: Config
    store: TableStore
    shared: TableStore
    """The store as a limiter is given it: one that it does not close."""
    directory: Directory | None
    usage: UnclosableLog | None
    limiter: Limiter
    webhook: Webhook | None
    envoy: RateLimitService | None
    """Envoy's rate limit service, where there are rules for it."""

    @classmethod
    def of(cls, config: Config, before: Runtime | None = None) -> Runtime:
        """Build it with what can stay of the one before. Raises `ConfigError`; opens nothing."""
        kept = before if before is not None and _place(before.config) == _place(config) else None
        store = working_store(config) if kept is None else kept.store
        shared = store if isinstance(store, MemoryStore) else UnclosableStore(store)
        deadline = config.directory_deadline
        stays = kept is not None and config.directory and kept.config.directory_deadline == deadline
        directory = kept.directory if kept is not None and stays else None
        if directory is None and config.directory:
            directory = Directory(shared.directory, deadline=deadline)
        webhook = None if config.alert_webhook == "off" else Webhook(config.alert_webhook, config.alert_secret)
        limiter = build_limiter(config, store=shared, directory=directory, on_alert=webhook)
        usage = kept.usage if kept is not None and kept.config.usage == config.usage else None
        if usage is None:
            usage = build_usage_log(UnclosableLog, config, limiter, store)
        return cls(
            config=config,
            store=store,
            shared=shared,
            directory=directory,
            usage=usage,
            limiter=limiter,
            webhook=webhook,
            envoy=_envoy_service(config, limiter, usage),
        )

    def enter(self) -> None:
        """Take over a usage log that it has of the one before."""
        if self.usage is not None:
            for action in self.limiter.policies:
                self.usage.add_action(action)
            self.usage.timelines.clear()
            self.usage.timelines.update(timelines_of(self.limiter.policies.values()))

    async def open(self) -> None:
        """Open the store and the usage log. Raises `ConfigError`, `StoreMisconfigured`, `StoreUnavailable`."""
        if self.usage is not None:
            await self.usage.open()
        await self.store.open()

    async def end(self, others: Iterable[Runtime]) -> None:
        """Close what none of the others holds."""
        held = list(others)
        if self.usage is not None and all(other.usage is not self.usage for other in held):
            await self.usage.end()
        if all(other.store is not self.store for other in held):
            await self.store.close()

    def sources(self) -> dict[object, Source]:
        """Return what is counted, by the part that counts it."""
        told = parts(self.limiter, self.store, self.directory, self.usage)
        found: dict[object, Source] = {part: partial(read, part) for part, read in told}
        if (envoy := self.envoy) is not None:
            found[envoy] = lambda: envoy_metrics(envoy.calls)
        if (webhook := self.webhook) is not None:
            found[webhook] = lambda: webhook_metrics(webhook.sent, webhook.failed)
        return found


def _envoy_service(config: Config, limiter: Limiter, usage: UsageLog | None) -> RateLimitService | None:
    if not config.envoy_config:
        return None
    # Imported here: it needs the extra `envoy`.
    from ratelimit.envoy.service import RateLimitService

    return RateLimitService(
        config.envoy_config,
        limiter,
        headers=config.headers,
        all_or_nothing=config.envoy_all_or_nothing,
        usage=usage,
        deadline=config.deadline,
    )


def _place(config: Config) -> tuple[object, ...]:
    return config.enabled, config.store, config.regions, config.mirror, config.user_hash_key


class Reloaded(Struct, frozen=True):
    """What a reload came to, by the names of settings (`policies.hint`)."""

    changed: list[str]
    restart: list[str]
    """Changed in the file, and in effect after a restart only."""


class AppVersion:
    """One configuration at work, from its start to the end of the last request that it was asked.

    Requests under way when the next version takes over are finished by this one.
    """

    def __init__(self, runtime: Runtime, service: Service) -> None:
        self.runtime = runtime
        self.requests = 0
        """Under way; websockets are among them."""
        self.service = service
        """Its end: refunds arrive, what was taken ahead goes back, connections to the upstream close."""
        self._idle = asyncio.Event()
        self._is_cut_off = False

    def exchange(self, connection: ClientConnection, request: Request) -> Exchange:
        """Return who answers a request, which is one more of its own."""
        exchange = self.service.exchange(connection, request)
        exchange.version = self
        self.requests += 1
        return exchange

    async def finish(self, answer: Awaitable[T]) -> T:
        """Await the answer to a request of this version, which does not end before."""
        self.requests += 1
        try:
            return await answer
        finally:
            self.over()

    def over(self) -> None:
        self.requests -= 1
        if not self.requests:
            self._idle.set()

    async def idle(self) -> None:
        """Wait until nothing is under way, or was cut off. It must not get new requests by then."""
        while self.requests and not self._is_cut_off:
            self._idle.clear()
            await self._idle.wait()

    def cut_off(self) -> None:
        self._is_cut_off = True
        self._idle.set()


class Sidecar:
    """A `Service` whose configuration can be exchanged: no request is cut off, and no count is lost.

    Made by `ratelimit.server.factory.sidecar`. Raises `ConfigError`.
    """

    def __init__(self, source: ConfigSource, make_service: ServiceFactory, *, log: AccessLog | None = None) -> None:
        self.admin: AsgiService | None = None
        """The admin listener's; None where it is off."""
        self.stopping = False
        """To be set when the whole service is about to end: it is not ready any longer."""
        self.running = False
        """Whether it has started, and not ended yet."""
        self.rejected = False
        """Whether the last reload was refused."""
        self._alive: list[AppVersion] = []
        """The configuration at work, and those before it that still have requests to finish."""
        self.registry = Registry()
        self.decisions = DecisionMetrics()
        self._source = source
        self._make_service = make_service
        self._log = log
        self._reloads = {"done": 0, "rejected": 0}
        self._reloading = asyncio.Lock()
        self._has_ended = False
        self._retiring = Tasks("ending a former configuration")
        self.registry.register("process", process_families)
        self.registry.register("decisions", self.decisions.collect)
        self.registry.register(self, self._metrics)
        self._instruments = Instruments.of(self.registry)
        config = source()
        runtime = Runtime.of(config)
        since = runtime.limiter.clock.now()
        self.recorder = None if config.admin == "off" else LiveRecorder(since, self.decisions, self.registry)
        """The last minutes, for the admin listener."""
        self.current = self._make(runtime)
        """The configuration at work."""
        self._enter(self.current)

    def exchange(self, connection: ClientConnection, request: Request) -> Exchange:
        return self.current.exchange(connection, request)

    def over(self, exchange: Exchange) -> None:
        version: AppVersion = exchange.version
        version.over()
        if self._log is not None:
            self._log.write(exchange, names_client=self.names_clients)

    def refused(self, connection: ClientConnection, request: Request, problem: Problem) -> None:
        if self._log is not None:
            self._log.write_refused(connection, request, problem, names_client=self.names_clients)

    @property
    def names_clients(self) -> bool:
        """Return whether an address may be said, which may be what a user is known by."""
        return self.current.runtime.config.user_hash_key is None

    @property
    def requests(self) -> int:
        """Return how many are under way, of all configurations."""
        return sum(version.requests for version in self._alive)

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
        changed = _shown(reloaded.changed) or "nothing has changed"
        restart = "".join(f"; {name} takes a restart" for name in reloaded.restart)
        logger.warning("the configuration was reloaded: %s%s", changed, restart)
        return reloaded

    async def preview(self) -> tuple[Reloaded, Config]:
        """Return what a reload would change now, and to what. Raises `ConfigError` where it would be refused."""
        return await asyncio.to_thread(self._read)

    def _read(self) -> tuple[Reloaded, Config]:
        """Return the configuration as it is now, and what is different in it. In a thread, as `_following` is: ten
        thousand policies take more than a second to check, and one to make ready."""
        config = self._source()
        return _difference(self.current.runtime.config, config), config

    def _following(self, config: Config, former: Runtime) -> AppVersion:
        config = replace(config, admin=former.config.admin)
        return self._make(Runtime.of(config, former))

    async def _reload(self) -> Reloaded:
        former = self.current
        reloaded, config = await asyncio.to_thread(self._read)
        if not reloaded.changed:
            return reloaded
        following = await asyncio.to_thread(self._following, config, former.runtime)
        runtime = following.runtime
        try:
            if runtime.store is not former.runtime.store or runtime.usage is not former.runtime.usage:
                # At the start a store may be out of reach; to leave one that works for it would be a mistake.
                await runtime.open()
            await following.service.start()
        except RateLimitError:
            await runtime.end(version.runtime for version in self._alive)
            raise
        self._enter(following)
        self._retiring.start(self._retire(former))
        return reloaded

    def _make(self, runtime: Runtime) -> AppVersion:
        limiter = runtime.limiter
        self.decisions.add_policies(limiter.policies)
        observe: Observer = self.decisions
        if self.recorder is not None:
            if isinstance(runtime.shared, UnclosableStore):
                runtime.shared.on_write = self.recorder.written.add
            observe = self.recorder.observer(observe, counts_writes=runtime.shared is runtime.store)
        add_observer(limiter, observe)
        if self._instruments is not None:
            add_observer(limiter, self._instruments.observe)
        return AppVersion(runtime, self._make_service(runtime))

    def _enter(self, version: AppVersion) -> None:
        self.current = version
        self._alive.append(version)
        version.runtime.enter()
        for part, source in version.runtime.sources().items():
            self.registry.register(part, source)
        if self._instruments is not None:
            self._instruments.add_families()

    async def _retire(self, version: AppVersion) -> None:
        await version.idle()
        await self._finish(version)

    async def _finish(self, version: AppVersion) -> None:
        """End it, and the parts that no other version has; the registry keeps what they counted."""
        await version.service.end()
        self._alive.remove(version)
        others = [each.runtime for each in self._alive]
        await version.runtime.end(others)
        held = {part for runtime in others for part in runtime.sources()}
        for part in version.runtime.sources():
            if part not in held:
                self.registry.retire(part)

    async def start(self) -> None:
        """Begin. Raises `StoreMisconfigured` and `ConfigError`."""
        try:
            async with self._reloading:
                await self.current.service.start()
        except (StoreMisconfigured, ConfigError):
            await self.end()
            raise
        self.running = True

    async def end(self) -> None:
        """End all versions. The server is through with its requests: what is still under way was cut off."""
        async with self._reloading:
            self.running = False
            self._has_ended = True
            for version in self._alive:
                version.cut_off()
            await self._retiring.drain()
            await self._finish(self.current)

    def _metrics(self) -> list[Family]:
        return [
            by_label("ratelimit_reloads", "Reloads of the configuration.", "result", self._reloads),
            gauge("ratelimit_reload_rejected", "1 where the last reload was refused.", float(self.rejected)),
            gauge("ratelimit_requests_in_progress", "Requests and websockets under way.", self.requests),
            gauge(
                "ratelimit_configurations", "Configurations at work, those included that are ending.", len(self._alive)
            ),
        ]


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
    return ", ".join(names[:_MAX_SHOWN]) + more


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
