"""`admin_app`: the admin listener's routes, and who may ask; `AdminBackend`: what they show, collected from this worker
and, by a `WorkerBus`, from the others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ratelimit.config import document, masked
from ratelimit.errors import ConfigError, RateLimitError, StoreMisconfigured, StoreUnavailable
from ratelimit.http.auth import Token
from ratelimit.http.health import Readiness, WorkerHealth, health_of
from ratelimit.http.problems import Problem, ProblemResponse, json_response
from ratelimit.live import About, Recording, live_document
from ratelimit.metrics import decode, encode, gauge
from ratelimit.prometheus import exposition
from ratelimit.server.sidecar import Sidecar
from ratelimit.server.worker_bus import WorkerBus

PAGE: Final = "/dashboard/"
OPEN: Final = ("/health", "/health/live", "/health/ready")
"""What anybody may ask: it names nobody, and no secrets."""
PATHS: Final = (*OPEN, "/live", "/metrics", "/config", "/reload")

_NO_STORE: Final = (b"cache-control", b"no-store")
_ASK_TIMEOUT_S: Final = 2.0
_RELOAD_TIMEOUT_S: Final = 30.0
_DONE: Final = b"done"
_UP: Final = "1 where the worker answers, 0 where it is there and does not."
_COVERS: Final = "the workers of this sidecar; other sidecars on the same table are not among them"

_encode: Final = msgspec.json.Encoder().encode
_health_decoder: Final = msgspec.json.Decoder(WorkerHealth)
_recording_decoder: Final = msgspec.json.Decoder(Recording)


def admin_app(backend: AdminBackend, page: Callable[[ASGIApp], ASGIApp] | None = None) -> ASGIApp:
    """Make the app. `page` makes that below `/dashboard/`: it is given the routes, and says itself whom it lets in."""

    async def ready(request: Request) -> Response:
        reason = await backend.unready()
        if reason is None:
            return json_response({"status": "ready"})
        return _problem(503, "Not ready", reason, (b"retry-after", b"1"))

    async def metrics(request: Request) -> Response:
        body, content_type = await backend.metrics(request.headers.get("accept", ""))
        return Response(body, headers={"cache-control": "no-store", "content-type": content_type})

    async def reload(request: Request) -> Response:
        try:
            return json_response(await (backend.reload() if request.method == "POST" else backend.preview()))
        except (ConfigError, StoreMisconfigured) as error:
            return _problem(422, "The configuration was not taken over", str(error))
        except StoreUnavailable as error:
            return _problem(503, "The configuration was not taken over", str(error))

    routes = Starlette(
        routes=[
            Route("/health", _showing(backend.health)),
            Route("/health/live", _showing(backend.alive)),
            Route("/health/ready", ready),
            Route("/live", _showing(backend.live)),
            Route("/metrics", metrics),
            Route("/config", _showing(backend.config)),
            Route("/reload", reload, methods=["GET", "POST"]),
        ],
        exception_handlers={HTTPException: _no_route, Exception: _bug},
    )
    routes.router.redirect_slashes = False
    return _Guarded(routes, backend.token, None if page is None else page(routes))


class _Guarded:
    """Lets anybody in to the health of the service, and to the other routes whom the token admits that holds now."""

    def __init__(self, routes: ASGIApp, token: Callable[[], Token], page: ASGIApp | None) -> None:
        self._routes = routes
        self._token = token
        self._page = page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._routes
        if scope["type"] == "http":
            path: str = scope["path"]
            if self._page is not None and path.startswith(PAGE):
                app, scope = self._page, {**scope, "root_path": PAGE.rstrip("/")}
            elif self._page is not None and path in ("/", PAGE.rstrip("/")):
                # Relative: a proxy in front may have it elsewhere.
                app = Response(status_code=307, headers={"location": PAGE.lstrip("/")})
            elif path not in OPEN:
                reads = scope["method"] in ("GET", "HEAD")
                failure = self._token().failure(scope["headers"], reads=reads)
                app = app if failure is None else ProblemResponse(failure, (_NO_STORE, *failure.headers))
        await app(scope, receive, send)


def _showing(read: Callable[[], Awaitable[object]]) -> Callable[[Request], Awaitable[Response]]:
    async def show(request: Request) -> Response:
        return json_response(await read())

    return show


def _problem(status: int, title: str, detail: str, *headers: tuple[bytes, bytes]) -> Response:
    return ProblemResponse(Problem(title=title, status=status, detail=detail), (_NO_STORE, *headers))


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        detail = f"{request.url.path} takes {allowed}"
        return _problem(405, "Method not allowed", detail, (b"allow", allowed.encode()))
    return _problem(error.status_code, "Not found", f"There are: {', '.join(PATHS)}")


async def _bug(request: Request, error: Exception) -> Response:
    """The server writes the traceback to its log."""
    return _problem(500, "A fault of ours", "What it was is in the log.")


class AdminBackend:
    """`folder`: where the workers of this service meet; None where there is one. `file`: where its configuration
    is."""

    def __init__(self, sidecar: Sidecar, folder: Path | None, file: str | None = None) -> None:
        self._sidecar = sidecar
        self._file = file
        self._clock = sidecar.current.runtime.limiter.clock
        self._since = self._clock.now()
        self._readiness = Readiness(lambda: sidecar.current.runtime.store, self._clock)
        self._token = lru_cache(maxsize=1)(Token)
        self._bus: WorkerBus | None = None
        if folder is not None:
            self._bus = WorkerBus(folder, {
                "metrics": self._own_metrics,
                "health": self._own_health,
                "live": self._own_recording,
                "reload": self._own_reload,
            })  # fmt: skip

    async def start(self) -> None:
        """Let the others ask this worker, until the end."""
        if self._bus is not None:
            await self._bus.start()

    async def end(self) -> None:
        if self._bus is not None:
            await self._bus.end()

    def token(self) -> Token:
        config = self._sidecar.current.runtime.config
        return self._token(config.admin_token, config.admin_read_token)

    async def alive(self) -> Mapping[str, object]:
        return {"status": "live"}

    async def health(self) -> Mapping[str, object]:
        said = await self._ask("health")
        others = {number: _health_decoder.decode(health) for number, health in said.items() if health is not None}
        workers = {self._number: await self._health(), **others}
        silent = {number: {"status": "silent"} for number in said.keys() - workers.keys()}
        well = not silent and all(worker.status == "ok" for worker in workers.values())
        status = "leaving" if self._sidecar.stopping else "ok" if well else "degraded"
        return {"status": status, "version": version("ratelimit-dynamodb"), "workers": {**workers, **silent}}

    async def unready(self) -> str | None:
        if self._sidecar.stopping:
            return "The service is about to end."
        if not self._sidecar.running:
            return "The service has not started yet."
        state = await self._readiness.state()
        return None if state == "ok" else f"The store cannot be used: {state}."

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        others = await self._ask("metrics")
        return await asyncio.to_thread(self._exposition, others, accept)

    def _exposition(self, others: Mapping[str, bytes | None], accept: str) -> tuple[bytes, str]:
        """Write all of it, in a thread: with ten thousand policies that takes a good part of a second."""
        workers = {self._number: [gauge("ratelimit_up", _UP, 1), *self._sidecar.registry.collect()]}
        for number, said in others.items():
            metrics = [] if said is None else decode(said)
            workers[number] = [gauge("ratelimit_up", _UP, float(said is not None)), *metrics]
        return exposition(workers, accept)

    async def live(self) -> Mapping[str, object]:
        health, others = await asyncio.gather(self.health(), self._ask("live"))
        recordings = {self._number: self._recording()}
        recordings.update({number: _recording_decoder.decode(said) for number, said in others.items() if said})
        runtime = self._sidecar.current.runtime
        about = About(
            covers=_COVERS,
            health=health,
            store=masked(runtime.config.store),
            source=lambda policy: "configuration" if policy in runtime.config.policies else "envoy",
            hot_by="checks" if runtime.shared is runtime.store else "writes",
            silent=[number for number, said in others.items() if not said],
            file=self._file,
            rejected=self._sidecar.rejected,
        )
        return await live_document(recordings, runtime.limiter, about)

    async def config(self) -> Mapping[str, object]:
        return document(self._sidecar.current.runtime.config)

    async def preview(self) -> Mapping[str, object]:
        reloaded, config = await self._sidecar.preview()
        now, then = document(self._sidecar.current.runtime.config), document(config)
        settings = {name: {"now": _setting(now, name), "then": _setting(then, name)} for name in reloaded.changed}
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

    async def _ask(self, question: str, *, within: float = _ASK_TIMEOUT_S) -> dict[str, bytes | None]:
        return {} if self._bus is None else await self._bus.ask(question, within=within)

    async def _health(self) -> WorkerHealth:
        sidecar, runtime = self._sidecar, self._sidecar.current.runtime
        return await health_of(
            runtime.limiter,
            runtime.usage,
            self._readiness,
            self._since,
            leaving=sidecar.stopping,
            requests=sidecar.requests,
            rejected=sidecar.rejected,
        )

    def _recording(self) -> Recording:
        assert self._sidecar.recorder is not None
        return self._sidecar.recorder.read()

    async def _own_recording(self) -> bytes:
        return _encode(self._recording())

    async def _own_metrics(self) -> bytes:
        return await asyncio.to_thread(lambda: encode(self._sidecar.registry.collect()))

    async def _own_health(self) -> bytes:
        return _encode(await self._health())

    async def _own_reload(self) -> bytes:
        try:
            await self._sidecar.reload()
        except RateLimitError as error:
            return str(error).encode()
        return _DONE


def _setting(document: Mapping[str, Any], name: str) -> object:
    section, _, policy = name.partition(".")
    return document["policies"].get(policy) if section == "policies" and policy else document.get(name)
