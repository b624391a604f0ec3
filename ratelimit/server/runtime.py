"""`Runtime`: what one configuration hands on to the next: the store and, on it, the directory and the usage log."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ratelimit.clock import Clock
from ratelimit.config import Config
from ratelimit.directory import Directory
from ratelimit.factory import build_limiter, build_store, build_usage_log
from ratelimit.limiter import Limiter
from ratelimit.server.webhook import Webhook
from ratelimit.store import MemoryStore, TableStore
from ratelimit.store.delegating import DelegatingStore
from ratelimit.usage import UsageLog

# What stays open when a limiter closes, because the next one counts there too. `Runtime` ends it when nobody does.


class UnclosableStore(DelegatingStore):
    """A store behind a `close` that does nothing. Not for the embedded one, which the limiter has to recognise."""

    async def close(self) -> None:
        """Left to `Runtime`."""


class UnclosableLog(UsageLog):
    """A usage log that goes on: what waits in its memory would otherwise be lost where the store is down just then."""

    async def close(self) -> None:
        """Left to `Runtime`."""

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

    @classmethod
    def of(cls, config: Config, before: Runtime | None = None, *, clock: Clock | None = None) -> Runtime:
        """For a configuration, with what can stay of the one before. Raises `ConfigError`; opens nothing."""
        kept = before if before is not None and _where(before.config) == _where(config) else None
        store = build_store(config) if kept is None else kept.store
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
                usage.seen(action)
        return cls(
            config=config,
            store=store,
            shared=shared,
            directory=directory,
            usage=usage,
            limiter=limiter,
            webhook=webhook,
        )

    async def open(self) -> None:
        """Raises `ConfigError`, `StoreMisconfigured`, `StoreUnavailable`."""
        if self.usage is not None:
            await self.usage.open()
        await self.store.open()

    async def end(self, others: Iterable[Runtime]) -> None:
        """Let go of what none of the others holds."""
        held = list(others)
        if self.usage is not None and all(other.usage is not self.usage for other in held):
            await self.usage.end()
        if all(other.store is not self.store for other in held):
            await self.store.close()


def _where(config: Config) -> tuple[str, str, str | None]:
    """What makes it another store."""
    return config.store, config.mirror, config.user_hash_key
