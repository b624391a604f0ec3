"""Alerts reach a real receiver, signed, again where it failed, and never in the way of anybody."""

from __future__ import annotations

import hmac
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from ratelimit import Limiter, MemoryStore, Policy
from ratelimit.server.webhook import ATTEMPTS, Webhook
from ratelimit.testing import FakeClock

SECRET = "a secret that both know"


class Receiver:
    """Answers with these statuses, then with 204."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.requests: list[tuple[web.BaseRequest, bytes]] = []
        self.url = ""

    async def answer(self, request: web.BaseRequest) -> web.Response:
        self.requests.append((request, await request.read()))
        return web.Response(status=self.statuses.pop(0) if self.statuses else 204)


@asynccontextmanager
async def receiving(*statuses: int) -> AsyncIterator[Receiver]:
    receiver = Receiver(*statuses)
    runner = web.ServerRunner(web.Server(receiver.answer))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/alerts"
    try:
        yield receiver
    finally:
        await runner.cleanup()


async def alert_with(hook: Webhook) -> None:
    limiter = Limiter(MemoryStore(), [Policy("hint", "10/day", alert_at=[0.8])], clock=FakeClock(), on_alert=hook)
    async with limiter:
        for _ in range(10):
            await limiter.check("alice", "hint")


async def test_an_alert_is_sent_once_and_signed() -> None:
    async with receiving() as receiver:
        hook = Webhook(receiver.url, SECRET)
        await alert_with(hook)
    ((request, body),) = receiver.requests
    said = json.loads(body)
    assert (said["user"], said["action"], said["threshold"], said["quota"]) == ("alice", "hint", 0.8, "10/day")
    assert (said["limit"], said["used"]) == (10, 8)
    assert request.headers["idempotency-key"] == said["id"]
    assert request.headers["x-ratelimit-signature"] == f"sha256={hmac.digest(SECRET.encode(), body, 'sha256').hex()}"
    assert (hook.sent, hook.failed) == (1, 0)


async def test_it_is_sent_again_under_the_same_id(pauses: list[float]) -> None:
    async with receiving(503, 429) as receiver:
        hook = Webhook(receiver.url)
        await alert_with(hook)
    assert len({request.headers["idempotency-key"] for request, _ in receiver.requests}) == 1
    assert "x-ratelimit-signature" not in receiver.requests[0][0].headers
    assert (len(receiver.requests), hook.sent) == (3, 1)
    assert pauses == [1.0, 2.0]


@pytest.mark.parametrize(("status", "attempts"), [(500, ATTEMPTS), (404, 1), (302, 1)])
@pytest.mark.usefixtures("pauses")
async def test_a_receiver_that_does_not_take_it(status: int, attempts: int, caplog: pytest.LogCaptureFixture) -> None:
    async with receiving(*[status] * ATTEMPTS) as receiver:
        hook = Webhook(receiver.url.replace("//", "//user:password@"))
        with caplog.at_level(logging.WARNING, logger="ratelimit"):
            await alert_with(hook)
    assert (len(receiver.requests), hook.failed) == (attempts, 1)
    assert f"status {status}" in caplog.text
    assert "password" not in caplog.text
    assert "alerts" not in caplog.text  # its path


@pytest.mark.usefixtures("pauses")
async def test_nobody_listens() -> None:
    async with receiving() as receiver:
        pass
    hook = Webhook(receiver.url)
    await alert_with(hook)
    assert hook.failed == 1


async def test_a_host_that_cannot_be_one_is_a_failure_like_others(caplog: pytest.LogCaptureFixture) -> None:
    hook = Webhook("http://hooks..example/services/TOKEN")
    with caplog.at_level(logging.WARNING, logger="ratelimit"):
        await alert_with(hook)
    assert (hook.sent, hook.failed) == (0, 1)
    assert "no name that can be looked up" in caplog.text
    assert "Traceback" not in caplog.text
    assert "TOKEN" not in caplog.text
