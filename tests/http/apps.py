"""What the tests of this room share: a limiter without set-up, and ways to call an app with nothing in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ratelimit import Limiter, MemoryStore, Policy, StoreMisconfigured
from ratelimit.store import Store
from ratelimit.testing import FakeClock
from tests.turns import settled

HINT = Policy("hint", "5/day", match="POST /hints")
LAMBDA_EVENT = {
    "version": "2.0",
    "rawPath": "/hints",
    "rawQueryString": "",
    "headers": {"host": "example.com"},
    "requestContext": {"http": {"method": "POST", "path": "/hints", "sourceIp": "192.0.2.1"}, "stage": "$default"},
    "isBase64Encoded": False,
}


def limiter_of(
    *policies: Policy, store: Store | None = None, clock: FakeClock | None = None, **options: Any
) -> Limiter:
    return Limiter(MemoryStore() if store is None else store, policies or [HINT], clock=clock or FakeClock(), **options)


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    """The smallest app: answers 200 to everything, `X-Status` as asked."""
    assert scope["type"] == "http"
    status = int(dict(scope["headers"]).get(b"x-status", b"200"))
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"hello"})


def client_of(app: ASGIApp, *, address: str = "203.0.113.7", root_path: str = "") -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, client=(address, 50000), root_path=root_path)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")


def scope_of(
    path: str = "/hints",
    *,
    method: str = "POST",
    kind: str = "http",
    headers: list[tuple[bytes, bytes]] | None = None,
    client: tuple[str, int] | None = ("203.0.113.7", 50000),
    **more: Any,
) -> Scope:
    scope: Scope = {"type": kind, "path": path, "headers": headers or [], "client": client, "query_string": b""}
    return {**scope, **({"method": method} if kind == "http" else {}), **more}


async def unread() -> Message:
    raise AssertionError("nobody should read this request")


async def call(app: ASGIApp, scope: Scope, receive: Receive = unread) -> list[Message]:
    """Every message that came out, as it was."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent


def headers_of(message: Message) -> dict[str, str]:
    """The headers of a start; fails where a name comes twice."""
    names = [name for name, _ in message["headers"]]
    assert len(names) == len(set(names))
    return {name.decode(): value.decode() for name, value in message["headers"]}


async def used(limiter: Limiter, user: str = "ip:203.0.113.7", action: str = "hint") -> int:
    await settled(5)
    return (await limiter.peek(user, action)).used


class LifespanRunner:
    """The lifespan of one app, once, whenever that is wanted."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._outbox: asyncio.Queue[Message] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin. Raises `StoreMisconfigured` with what the app says is wrong, and what the app raises."""
        scope: Scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
        self._task = asyncio.create_task(self._run(scope))
        answer = await self._ask("lifespan.startup")
        if answer["type"] != "lifespan.startup.complete":
            raise StoreMisconfigured(answer.get("message", "the app did not start"))

    async def end(self) -> None:
        """Return when the app has ended. Raises what it raises; harmless where it did not start."""
        if self._task is not None:
            if not self._task.done():
                await self._ask("lifespan.shutdown")
            await self._task

    async def _run(self, scope: Scope) -> None:
        try:
            await self._app(scope, self._inbox.get, self._outbox.put)
        finally:
            # Whoever waits for an answer that will not come is not left waiting.
            self._outbox.put_nowait({"type": "ended"})

    async def _ask(self, kind: str) -> Message:
        self._inbox.put_nowait({"type": kind})
        answer = await self._outbox.get()
        if answer["type"] == "ended" and self._task is not None:
            await self._task
        return answer


@asynccontextmanager
async def lifespan_of(app: ASGIApp) -> AsyncIterator[list[Message]]:
    """Run the app's lifespan around the body, as a server does; yields what the app has sent so far."""
    sent: list[Message] = []

    async def noted(scope: Scope, receive: Receive, send: Send) -> None:
        async def note(message: Message) -> None:
            sent.append(message)
            await send(message)

        await app(scope, receive, note)

    lifespan = LifespanRunner(noted)
    with suppress(Exception):  # told again at the end
        await lifespan.start()
    yield sent
    await asyncio.wait_for(lifespan.end(), 30)
