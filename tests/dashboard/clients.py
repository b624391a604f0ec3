"""The page on a store in memory, and a client that has logged in to it, as a browser does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import httpx

from ratelimit import Directory, Limiter, MemoryStore, Policy, UsageLog
from ratelimit.dashboard.app import Dashboard, Parts
from ratelimit.dashboard.session import Auth, TokenLogin, tokens_of
from ratelimit.http.api import Api
from ratelimit.live import AppLive
from ratelimit.testing import FakeClock

OPERATOR = "an-operator-of-this-service"
READER = "a-reader-of-this-service"
ORIGIN = "http://limits.example"


class Page(NamedTuple):
    """A page, who asks it, and what is behind it."""

    client: httpx.AsyncClient
    app: Dashboard
    clock: FakeClock
    tokens: dict[str, str | None]
    limiter: Limiter
    usage: UsageLog
    directory: Directory

    async def log_in(self, token: str = OPERATOR) -> dict[str, Any]:
        """Begin a session: what the page knows of it. The client sends its token along from now on."""
        answer = await self.client.post("/session", json={"token": token})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        self.client.headers["x-csrf-token"] = found["csrf"]
        return found


@asynccontextmanager
async def page(*, auth: Auth | None = None, operator: str | None = OPERATOR, reader: str | None = READER,
               base_url: str = ORIGIN, proxies: Sequence[str] = ()) -> AsyncIterator[Page]:  # fmt: skip
    clock = FakeClock()
    store = MemoryStore()
    directory = Directory(store.directory, clock=clock)
    limiter = Limiter(store, [Policy("hint", "5/day"), Policy("run", "20/hour")], clock=clock, directory=directory)
    tokens: dict[str, str | None] = {"operator": operator, "reader": reader}
    async with limiter, UsageLog(store, actions=limiter.policies, clock=clock) as usage:
        parts = Parts(Api(limiter, store, usage=usage, directory=directory), limiter, usage)
        login = auth or TokenLogin(lambda: tokens_of(**tokens), clock)
        app = Dashboard(lambda: parts, login, AppLive(limiter, usage), proxies=lambda: proxies)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url=base_url, headers={"origin": base_url}) as client:
            yield Page(client, app, clock, tokens, limiter, usage, directory)
