"""`Runtime`: what one configuration works with, and hands on to the next: the store, the directory, the usage log."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ratelimit.clock import Clock
from ratelimit.config import Config
from ratelimit.directory import Directory
from ratelimit.factory import build_limiter, build_usage_log, working_store
from ratelimit.limiter import Limiter
from ratelimit.metrics import Source, envoy_metrics, parts, webhook_metrics
from ratelimit.names import Key
from ratelimit.policy import timelines_of
from ratelimit.server.webhook import Webhook
from ratelimit.store import MemoryStore, TableStore
from ratelimit.store.base import Outcome, Write
from ratelimit.store.delegating import DelegatingStore
from ratelimit.usage import UsageLog

if TYPE_CHECKING:
    from ratelimit.envoy.service import RateLimitService


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
    def of(cls, config: Config, before: Runtime | None = None, *, clock: Clock | None = None) -> Runtime:
        """Build it with what can stay of the one before. Raises `ConfigError`; opens nothing."""
        kept = before if before is not None and _place(before.config) == _place(config) else None
        store = working_store(config) if kept is None else kept.store
        shared = store if isinstance(store, MemoryStore) else UnclosableStore(store)
        directory = kept.directory if kept is not None and config.directory else None
        if directory is None and config.directory:
            directory = Directory(shared.directory, clock=clock)
        webhook = None if config.alert_webhook == "off" else Webhook(config.alert_webhook, config.alert_secret)
        limiter = build_limiter(config, store=shared, directory=directory, clock=clock, on_alert=webhook)
        usage = kept.usage if kept is not None and kept.config.usage == config.usage else None
        if usage is None:
            usage = build_usage_log(UnclosableLog, config, limiter, store)
        else:
            for action in limiter.policies:
                usage.add_action(action)
            usage.timelines.clear()
            usage.timelines.update(timelines_of(limiter.policies.values()))
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
    """Return what makes it another store."""
    return config.enabled, config.store, config.regions, config.mirror, config.user_hash_key
