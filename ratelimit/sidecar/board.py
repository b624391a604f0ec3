"""`ServiceBoard`: what the admin listener shows, collected from this worker and its siblings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec

from ratelimit.clock import seconds
from ratelimit.config import document
from ratelimit.errors import ConfigError, RateLimitError
from ratelimit.http.admin import Token
from ratelimit.metrics import Family
from ratelimit.metrics.families import gauge
from ratelimit.sidecar.readiness import Readiness
from ratelimit.sidecar.report import Silent, WorkerHealth
from ratelimit.sidecar.siblings import Siblings
from ratelimit.sidecar.sidecar import Sidecar

ALONE: Final = "0"
_ASK_S: Final = 2.0
_RELOAD_S: Final = 30.0

_encode = msgspec.json.Encoder().encode
_families = msgspec.json.Decoder(list[Family])
_worker = msgspec.json.Decoder(WorkerHealth)


class ServiceBoard:
    """A `Board`. `folder`: where the workers of this service meet; None where there is one."""

    def __init__(self, sidecar: Sidecar, folder: Path | None) -> None:
        self._sidecar = sidecar
        self._clock = sidecar.current.base.limiter.clock
        self._since = self._clock.now()
        self._readiness = Readiness(lambda: sidecar.current.base.store, self._clock)
        self._token: tuple[str | None, Token] = (None, Token(None))
        self._siblings: Siblings | None = None
        if folder is not None:
            answers = {"families": self._own_families, "health": self._own_health, "reload": self._own_reload}
            self._siblings = Siblings(folder, answers)

    @asynccontextmanager
    async def lifespan(self, app: object) -> AsyncIterator[None]:
        """In which the others can ask this worker."""
        if self._siblings is not None:
            await self._siblings.start()
        try:
            yield
        finally:
            if self._siblings is not None:
                await self._siblings.end()

    def token(self) -> Token:
        """As configured now."""
        text = self._sidecar.current.base.config.admin_token
        if self._token[0] != text:
            self._token = text, Token(text)
        return self._token[1]

    async def health(self) -> Mapping[str, object]:
        """See `Board`."""
        workers: dict[str, WorkerHealth | Silent] = {self._number: await self._health()}
        for number, said in (await self._ask("health", within=_ASK_S)).items():
            workers[number] = Silent() if said is None else _worker.decode(said)
        well = all(worker.status == "ok" for worker in workers.values())
        status = "leaving" if self._sidecar.leaving else "ok" if well else "degraded"
        return {"status": status, "version": version("ratelimit-dynamodb"), "workers": workers}

    async def unready(self) -> str | None:
        """See `Board`."""
        if self._sidecar.leaving:
            return "The service is about to end."
        if not self._sidecar.running:
            return "The service has not started yet."
        state = await self._readiness.state()
        return None if state == "ok" else f"The store cannot be used: {state}."

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        """See `Board`."""
        # Imported here: the client belongs to the extra `sidecar`.
        from ratelimit.metrics.exposition import exposition

        others = await self._ask("families", within=_ASK_S)
        workers = {self._number: [gauge("ratelimit_up", _UP, 1), *self._families()]}
        for number, said in others.items():
            families = [] if said is None else _families.decode(said)
            workers[number] = [gauge("ratelimit_up", _UP, float(said is not None)), *families]
        return exposition(workers, accept)

    def config(self) -> Mapping[str, object]:
        """See `Board`."""
        return document(self._sidecar.current.base.config)

    async def reload(self) -> Mapping[str, object]:
        """See `Board`. The others are asked when it has worked here; what they could not do is an error too."""
        reloaded = await self._sidecar.reload()
        others = await self._ask("reload", within=_RELOAD_S)
        failed = {number: (said or b"no answer").decode() for number, said in others.items() if said != _DONE}
        if failed:
            told = "; ".join(f"worker {number}: {why}" for number, why in failed.items())
            raise ConfigError("", f"this worker has reloaded, and not all others: {told}")
        return {"changed": reloaded.changed, "restart": reloaded.restart, "workers": 1 + len(others)}

    @property
    def _number(self) -> str:
        return ALONE if self._siblings is None else self._siblings.number

    async def _ask(self, question: str, *, within: float) -> dict[str, bytes | None]:
        return {} if self._siblings is None else await self._siblings.ask(question, within=within)

    def _families(self) -> list[Family]:
        from ratelimit.metrics.exposition import process_families

        return [*self._sidecar.books.families(), *process_families()]

    async def _health(self) -> WorkerHealth:
        sidecar = self._sidecar
        return WorkerHealth.of(
            sidecar.current.base,
            kind=sidecar.current.base.config.store.partition("://")[0],
            state=await self._readiness.state(),
            leaving=sidecar.leaving,
            uptime=seconds(self._clock.now() - self._since),
            requests=sidecar.requests,
            rejected=sidecar.rejected,
        )

    async def _own_families(self) -> bytes:
        return _encode(self._families())

    async def _own_health(self) -> bytes:
        return _encode(await self._health())

    async def _own_reload(self) -> bytes:
        try:
            await self._sidecar.reload()
        except RateLimitError as error:
            return str(error).encode()
        return _DONE


_DONE: Final = b"done"
_UP: Final = "1 where the worker answers, 0 where it is there and does not."
