"""`ServerBackend`: what the admin listener shows, collected from this worker and from the others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Struct

from ratelimit import live
from ratelimit.clock import SECOND, Clock, instant, seconds
from ratelimit.config import document, masked
from ratelimit.cost import DEFAULT_REGION, Prices, load_prices
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
from ratelimit.factory import table_settings
from ratelimit.http.auth import Token
from ratelimit.live import INTERVAL_S, KeyTraffic, LiveRecorder, Recording
from ratelimit.metrics import OTHER, decode, encode, gauge
from ratelimit.names import Key
from ratelimit.prometheus import exposition
from ratelimit.server.runtime import Runtime
from ratelimit.server.sidecar import Sidecar
from ratelimit.server.worker_bus import WorkerBus
from ratelimit.store import TableStore
from ratelimit.store.hashed import UserHash
from ratelimit.tasks import Tasks
from ratelimit.top_keys import KeyCount
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


class Reloading(Struct, frozen=True):
    """What a reload would make of a setting, both as in `GET /config`; None where it is not set."""

    now: object
    then: object


class Silent(Struct, frozen=True):
    """One that is there and does not answer."""

    status: Literal["silent"] = "silent"


_encode: Final = msgspec.json.Encoder().encode
_health_decoder: Final = msgspec.json.Decoder(WorkerHealth)
_recording_decoder: Final = msgspec.json.Decoder(Recording)
_COVERS: Final = "the workers of this sidecar; other sidecars on the same table are not among them"


class ServerBackend:
    """An `AdminBackend`. `folder`: where the workers of this service meet; None where there is one. `file`: where its
    configuration is."""

    def __init__(self, sidecar: Sidecar, folder: Path | None, file: str | None = None) -> None:
        self._sidecar = sidecar
        self._file = file
        self._clock = sidecar.current.runtime.limiter.clock
        self._since = self._clock.now()
        self._readiness = Readiness(lambda: sidecar.current.runtime.store, self._clock)
        self._token = lru_cache(maxsize=1)(Token)
        self._recorder = LiveRecorder(self._since, sidecar.decisions, sidecar.registry, sidecar.keys or KeyTraffic())
        self._recording = Tasks("recording the last minutes")
        self._bus: WorkerBus | None = None
        if folder is not None:
            self._bus = WorkerBus(folder, {
                "metrics": self._own_metrics,
                "health": self._own_health,
                "live": self._own_recording,
                "reload": self._own_reload,
            })  # fmt: skip

    @asynccontextmanager
    async def lifespan(self, app: object) -> AsyncIterator[None]:
        """Record meanwhile, and let the others ask this worker."""
        if self._bus is not None:
            await self._bus.start()
        self._recording.start(self._record())
        try:
            yield
        finally:
            await self._recording.cancel()
            if self._bus is not None:
                await self._bus.end()

    def token(self) -> Token:
        """Return the one that is configured now."""
        config = self._sidecar.current.runtime.config
        return self._token(config.admin_token, config.admin_read_token)

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
        workers = {self._number: [gauge("ratelimit_up", _UP, 1), *self._sidecar.registry.collect()]}
        for number, said in (await self._ask("metrics", within=_ASK_TIMEOUT_S)).items():
            metrics = [] if said is None else decode(said)
            workers[number] = [gauge("ratelimit_up", _UP, float(said is not None)), *metrics]
        return exposition(workers, accept)

    async def live(self) -> Mapping[str, object]:
        health, others = await asyncio.gather(self.health(), self._ask("live", within=_ASK_TIMEOUT_S))
        recordings = {self._number: self._recorder.read()}
        recordings.update({number: _recording_decoder.decode(said) for number, said in others.items() if said})
        runtime = self._sidecar.current.runtime
        # In a thread, as it takes tens of milliseconds where there are many policies.
        found = await asyncio.to_thread(live.document, list(recordings.values()))
        for policy in found["policies"]:
            policy.update(_described(policy["name"], runtime))
        for name, counted in (("refused", "count"), ("hot", "writes")):
            found[name] = [_shown(key, counted, runtime.config.user_hash_key) for key in found[name]]
        return {
            "at": instant(self._clock.now()),
            "covers": {
                "workers": len(recordings),
                "silent": [number for number, said in others.items() if not said],
                "since": instant(min(recording.since for recording in recordings.values())),
                "what": _COVERS,
            },
            "store": masked(runtime.config.store),
            "configuration": {"file": self._file, "state": "last good" if self._sidecar.rejected else "as read"},
            "health": health,
            **found,
            "cost": live.cost(recordings, _prices(runtime.config.store)),
        }

    def config(self) -> Mapping[str, object]:
        return document(self._sidecar.current.runtime.config)

    def preview(self) -> Mapping[str, object]:
        reloaded, config = self._sidecar.preview()
        now, then = self.config(), document(config)
        settings = {name: Reloading(_setting(now, name), _setting(then, name)) for name in reloaded.changed}
        return {"changed": reloaded.changed, "restart": reloaded.restart, "settings": settings}

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

    async def _record(self) -> None:
        """By the machine's monotonic clock, so that the intervals of all workers are the same."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(INTERVAL_S - loop.time() % INTERVAL_S)
            self._recorder.sample(int(loop.time() // INTERVAL_S))

    async def _own_recording(self) -> bytes:
        return _encode(self._recorder.read())

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


def _described(name: str, runtime: Runtime) -> dict[str, object]:
    """Return what holds for a policy now, and where that stands."""
    policy = runtime.limiter.policies.get(name)
    if policy is None:
        return {"source": "call" if name == OTHER else None}
    source = "configuration" if policy in runtime.config.policies else "envoy"
    quotas = [str(quota) for quota in policy.quotas] or ["unlimited"]
    return {"quotas": quotas, "algorithm": policy.algorithm, "mode": policy.mode, "source": source}


def _shown(key: KeyCount, counted: str, secret: str | None) -> dict[str, object]:
    user = key.user if secret is None else UserHash(secret).of(key.user)
    return {"user": user, "action": key.action, counted: key.count, "error": key.error}


@lru_cache(maxsize=1)
def _prices(store: str) -> Prices:
    """Return those of the table's region, or of the default one where they are not known."""
    region = None if store.startswith("memory://") else table_settings(store).region
    try:
        return load_prices(region or DEFAULT_REGION)
    except ConfigError:
        return load_prices()


def _setting(document: Mapping[str, Any], name: str) -> object:
    section, _, policy = name.partition(".")
    return document["policies"].get(policy) if section == "policies" and policy else document.get(name)
