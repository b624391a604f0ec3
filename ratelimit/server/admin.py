"""`admin_app`: the admin listener's routes, and who may ask; `AdminBackend`: what they show, collected from this worker
and, by a `WorkerBus`, from the others."""

from __future__ import annotations

import asyncio
import os
from asyncio import StreamReader, StreamWriter
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from importlib.metadata import version
from itertools import count
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
from ratelimit.tasks import Tasks

PAGE: Final = "/dashboard/"
OPEN: Final = ("/health", "/health/live", "/health/ready")
"""What anybody may ask: it names nobody, and no secrets."""
PATHS: Final = (*OPEN, "/live", "/metrics", "/config", "/reload")

_NO_STORE: Final = (b"cache-control", b"no-store")
_ASK_TIMEOUT_S: Final = 2.0
_RELOAD_TIMEOUT_S: Final = 30.0
_DONE: Final = b"done"
_MAX_QUESTION: Final = 64
_QUESTION_TIMEOUT_S: Final = 5.0
_MODE: Final = 0o600
_END: Final = b"\n"
_GONE: Final = b"gone"
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


class WorkerBus:
    """One worker's place among those of a service, who answer one another's questions over unix sockets in a folder of
    theirs. `answers`: what it says to which question.

    A question is a line, and the answer too: one without an end was cut short, and counts for none. A worker takes the
    lowest free number and holds it by a lock that ends with the process, however that ends: so a restart brings no new
    numbers, and metrics no new labels.
    """

    def __init__(self, folder: Path, answers: Mapping[str, Callable[[], Awaitable[bytes]]]) -> None:
        self.number = ""
        """Its own, once it has started."""
        self._folder = folder
        self._answers = answers
        self._lock: int | None = None
        self._server: asyncio.AbstractServer | None = None
        self._conversations = Tasks("answering another worker")

    async def start(self) -> None:
        """Take a number and listen. Raises `OSError`."""
        self.number, self._lock = self._take_number()
        # Takes the place of a socket that a former holder of the number, whose lock has ended, left behind.
        path = self._socket(self.number)
        self._server = await asyncio.start_unix_server(self._serve, path, limit=_MAX_QUESTION)

    async def end(self) -> None:
        """Give the number back; harmless where there is none."""
        server, self._server = self._server, None
        lock, self._lock = self._lock, None
        if server is not None:
            server.close()
            self._socket(self.number).unlink(missing_ok=True)
            await self._conversations.cancel()
        if lock is not None:
            os.close(lock)

    async def ask(self, question: str, *, within: float) -> dict[str, bytes | None]:
        """Return the others' answers, by their numbers; None of one that is there and gave none in so many seconds."""
        numbers = sorted(path.stem for path in self._folder.glob("*.sock") if path.stem != self.number)
        answers = await asyncio.gather(*(self._ask(number, question, within) for number in numbers))
        return {number: answer for number, answer in zip(numbers, answers, strict=True) if answer != _GONE}

    async def _ask(self, number: str, question: str, within: float) -> bytes | None:
        try:
            async with asyncio.timeout(within):
                reader, writer = await asyncio.open_unix_connection(self._socket(number))
                try:
                    writer.write(f"{question}\n".encode())
                    answer = await reader.read()
                    return answer.removesuffix(_END) if answer.endswith(_END) else None
                finally:
                    writer.close()
        except (ConnectionRefusedError, FileNotFoundError):
            return _GONE
        except (OSError, TimeoutError):
            return None

    def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        self._conversations.start(self._answer(reader, writer))

    async def _answer(self, reader: StreamReader, writer: StreamWriter) -> None:
        try:
            async with asyncio.timeout(_QUESTION_TIMEOUT_S):
                question = (await reader.readuntil()).decode("ascii").strip()
            if question in self._answers:
                writer.write(await self._answers[question]() + _END)
                await writer.drain()
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    def _take_number(self) -> tuple[str, int]:
        import fcntl  # only where there are several workers: Windows has neither

        for number in count():
            lock = os.open(self._folder / f"{number}.lock", os.O_RDWR | os.O_CREAT, _MODE)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            return str(number), lock
        raise AssertionError("there is always a next number")

    def _socket(self, number: str) -> Path:
        return self._folder / f"{number}.sock"
