"""`ServerBackend`: what the admin listener shows, collected from this worker and from the others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Final, Literal, TypeAlias

import msgspec
from msgspec import Struct
from prometheus_client.core import GaugeMetricFamily as Gauge

from ratelimit.clock import SECOND, Clock, seconds
from ratelimit.config import document
from ratelimit.directory import Directory
from ratelimit.errors import (
    AccessDenied,
    ConfigError,
    RateLimitError,
    StoreMisconfigured,
    StoreThrottled,
    StoreUnavailable,
    TableMismatch,
    TableNotFound,
)
from ratelimit.http.auth import Token
from ratelimit.metrics import decode, encode, exposition
from ratelimit.names import Key
from ratelimit.server.sidecar import Sidecar
from ratelimit.server.worker_bus import WorkerBus
from ratelimit.store import TableStore
from ratelimit.usage import UsageLog

logger = logging.getLogger("ratelimit")

StoreState: TypeAlias = Literal[
    "ok", "unavailable", "late", "misconfigured", "access_denied", "table_not_found", "table_mismatch"
]

KNOWN_FOR_US: Final = 1 * SECOND
DEADLINE_S: Final = 1.0
_ASK_TIMEOUT_S: Final = 2.0
_RELOAD_TIMEOUT_S: Final = 30.0
_DONE: Final = b"done"
_UP: Final = "1 where the worker answers, 0 where it is there and does not."
# Nobody is called so, and reading it writes nothing.
_KEY: Final = Key.of("health", "health")
_STATES: Final[dict[type[StoreMisconfigured], StoreState]] = {
    TableNotFound: "table_not_found",
    TableMismatch: "table_mismatch",
    AccessDenied: "access_denied",
}


class Readiness:
    """Tell whether the store answers, asking it for real, and at most once a second however many want to know.

    `store` returns which one it is now. What exactly is wrong is in the log: it names tables and hosts.
    """

    def __init__(self, store: Callable[[], TableStore], clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._known: tuple[int, TableStore, StoreState] | None = None
        self._asking: asyncio.Task[StoreState] | None = None
        self._said = ""

    async def state(self) -> StoreState:
        """Return the state as of a second ago at most."""
        now, store = self._clock.now(), self._store()
        if self._known is not None and 0 <= now - self._known[0] < KNOWN_FOR_US and self._known[1] is store:
            return self._known[2]
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask(store, now))
        # Not awaited itself: who asks may go away, and the others want to know still.
        asking = self._asking
        await asyncio.wait([asking])
        return asking.result()

    async def _ask(self, store: TableStore, now: int) -> StoreState:
        try:
            state = await self._read(store)
        finally:
            self._asking = None
        self._known = now, store, state
        return state

    async def _read(self, store: TableStore) -> StoreState:
        try:
            async with asyncio.timeout(DEADLINE_S):
                await store.read(_KEY)
        except TimeoutError:
            return self._say("late", f"no answer within {DEADLINE_S:g} s")
        except StoreThrottled:  # It answers, and other records may do better.
            pass
        except StoreMisconfigured as error:
            return self._say(_STATES.get(type(error), "misconfigured"), str(error))
        except StoreUnavailable as error:
            return self._say("unavailable", str(error))
        self._said = ""
        return "ok"

    def _say(self, state: StoreState, why: str) -> StoreState:
        """Log it once, until it changes."""
        if self._said != state:
            logger.warning("not ready, the store cannot be used: %s", why)
            self._said = state
        return state


class UsageHealth(Struct, frozen=True):
    """The usage log."""

    kept: Literal["memory", "journal"]
    depth: int
    in_flight: int
    dropped: int
    journal_bytes: int

    @classmethod
    def of(cls, log: UsageLog) -> UsageHealth:
        stats = log.stats
        return cls(log.settings.durability, stats.depth, stats.in_flight, stats.dropped, stats.journal_bytes)


class DirectoryHealth(Struct, frozen=True):
    """The cache of users and plans."""

    failures: int
    stale: int

    @classmethod
    def of(cls, directory: Directory) -> DirectoryHealth:
        return cls(directory.stats.failures, directory.stats.stale)


class WorkerHealth(Struct, frozen=True):
    """How one worker is, in words that name no user, no table and no host."""

    status: Literal["ok", "degraded", "leaving"]
    uptime: float
    """Seconds."""
    store: str
    """Its kind: `memory` or `dynamodb`."""
    store_state: StoreState
    breaker: Literal["closed", "open", "half_open"]
    usage: UsageHealth | None
    directory: DirectoryHealth | None
    requests: int
    """Under way."""
    configuration: Literal["as read", "last good"]
    """`last good` where the last reload was refused."""


class Silent(Struct, frozen=True):
    """One that is there and does not answer."""

    status: Literal["silent"] = "silent"


_encode: Final = msgspec.json.Encoder().encode
_health_decoder: Final = msgspec.json.Decoder(WorkerHealth)


class ServerBackend:
    """An `AdminBackend`. `folder`: where the workers of this service meet; None where there is one."""

    def __init__(self, sidecar: Sidecar, folder: Path | None) -> None:
        self._sidecar = sidecar
        self._clock = sidecar.current.runtime.limiter.clock
        self._since = self._clock.now()
        self._readiness = Readiness(lambda: sidecar.current.runtime.store, self._clock)
        self._token = lru_cache(maxsize=1)(Token)
        self._bus: WorkerBus | None = None
        if folder is not None:
            answers = {"metrics": self._own_metrics, "health": self._own_health, "reload": self._own_reload}
            self._bus = WorkerBus(folder, answers)

    @asynccontextmanager
    async def lifespan(self, app: object) -> AsyncIterator[None]:
        """Let the others ask this worker meanwhile."""
        if self._bus is not None:
            await self._bus.start()
        try:
            yield
        finally:
            if self._bus is not None:
                await self._bus.end()

    def token(self) -> Token:
        """Return the one that is configured now."""
        return self._token(self._sidecar.current.runtime.config.admin_token)

    async def health(self) -> Mapping[str, object]:
        workers: dict[str, WorkerHealth | Silent] = {self._number: await self._health()}
        for number, said in (await self._ask("health", within=_ASK_TIMEOUT_S)).items():
            workers[number] = Silent() if said is None else _health_decoder.decode(said)
        well = all(worker.status == "ok" for worker in workers.values())
        status = "leaving" if self._sidecar.stopping else "ok" if well else "degraded"
        return {"status": status, "version": version("ratelimit-dynamodb"), "workers": workers}

    async def unready(self) -> str | None:
        if self._sidecar.stopping:
            return "The service is about to end."
        if not self._sidecar.running:
            return "The service has not started yet."
        state = await self._readiness.state()
        return None if state == "ok" else f"The store cannot be used: {state}."

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        workers = {self._number: [Gauge("ratelimit_up", _UP, 1), *self._sidecar.registry.collect()]}
        for number, said in (await self._ask("metrics", within=_ASK_TIMEOUT_S)).items():
            metrics = [] if said is None else decode(said)
            workers[number] = [Gauge("ratelimit_up", _UP, float(said is not None)), *metrics]
        return exposition(workers, accept)

    def config(self) -> Mapping[str, object]:
        return document(self._sidecar.current.runtime.config)

    async def reload(self) -> Mapping[str, object]:
        """Reload here, then elsewhere; what the others could not do is an error too."""
        reloaded = await self._sidecar.reload()
        others = await self._ask("reload", within=_RELOAD_TIMEOUT_S)
        failed = {number: (said or b"no answer").decode() for number, said in others.items() if said != _DONE}
        if failed:
            told = "; ".join(f"worker {number}: {why}" for number, why in failed.items())
            raise ConfigError("", f"this worker has reloaded, and not all others: {told}")
        return {"changed": reloaded.changed, "restart": reloaded.restart, "workers": 1 + len(others)}

    @property
    def _number(self) -> str:
        return "0" if self._bus is None else self._bus.number

    async def _ask(self, question: str, *, within: float) -> dict[str, bytes | None]:
        return {} if self._bus is None else await self._bus.ask(question, within=within)

    async def _health(self) -> WorkerHealth:
        sidecar, runtime = self._sidecar, self._sidecar.current.runtime
        state, breaker = await self._readiness.state(), runtime.limiter.breaker.state
        well = state == "ok" and breaker == "closed"
        return WorkerHealth(
            status="leaving" if sidecar.stopping else "ok" if well else "degraded",
            uptime=round(seconds(self._clock.now() - self._since), 1),
            store=runtime.config.store.partition("://")[0],
            store_state=state,
            breaker=breaker,
            usage=None if runtime.usage is None else UsageHealth.of(runtime.usage),
            directory=None if runtime.directory is None else DirectoryHealth.of(runtime.directory),
            requests=sidecar.requests,
            configuration="last good" if sidecar.rejected else "as read",
        )

    async def _own_metrics(self) -> bytes:
        return encode(self._sidecar.registry.collect())

    async def _own_health(self) -> bytes:
        return _encode(await self._health())

    async def _own_reload(self) -> bytes:
        try:
            await self._sidecar.reload()
        except RateLimitError as error:
            return str(error).encode()
        return _DONE
