"""`enabled = false`: everything passes, and nobody is asked."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from fastapi import Depends, FastAPI

from ratelimit import (
    Decision,
    Directory,
    Limiter,
    MemoryStore,
    Policy,
    RateLimitMiddleware,
    UnknownAction,
    User,
    configure,
    limited,
)
from ratelimit.config import load_config
from ratelimit.server.sidecar import Runtime
from ratelimit.wsgi.middleware import configure as configure_for_threads
from tests.http.apps import client_of, lifespan_of

POLICIES = [
    Policy("hint", "1/day", match="POST /hints", cost=lambda request: 1 // 0),
    Policy("export", "1/day", algorithm="gcra", mode="enforce"),
    Policy("run", "1/day", lease=1, alert_at=[0.5]),
    Policy("answer", "1 concurrent; 10/day", reserve=True),
    Policy("org", "1/day"),
    Policy("member", "1/day", together="org", share=0.5),
]
OFF: dict[str, Any] = {
    "enabled": False,
    "policies": POLICIES,
    "store": "dynamodb://nowhere?region=eu-west-1&endpoint=http://127.0.0.1:9",
    "usage": "memory",
    "directory": True,
}


async def test_an_app_is_as_it_would_be_without(caplog: pytest.LogCaptureFixture) -> None:
    app = FastAPI()

    @app.post("/hints")
    def hint() -> None: ...

    @app.post("/exports")
    def export(decision: Decision = Depends(limited("export", cost=10))) -> bool:  # noqa: B008
        return decision.allowed

    app.add_middleware(RateLimitMiddleware.from_config, **OFF)
    async with lifespan_of(app), client_of(app) as client:
        answers = [await client.post(path) for path in ("/hints", "/hints", "/exports", "/exports")]
    assert [answer.status_code for answer in answers] == [200] * 4
    assert not [name for answer in answers for name in answer.headers if "ratelimit" in name]
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [
        "enabled = false: nothing is limited"
    ]


async def test_a_limiter_that_is_asked_allows_it() -> None:
    settings = configure(**OFF)
    limiter = settings["limiter"]
    assert settings["usage"] is None
    assert isinstance(limiter.store, MemoryStore)
    for action in ("hint", "export", "run"):
        assert [(await limiter.check("alice", action, cost=7)).allowed for _ in range(3)] == [True] * 3
    assert (await limiter.check("alice", "other", quotas="1/day", cost=7)).allowed
    assert (await limiter.wait("alice", "run", cost=1000, timeout=0)).allowed
    for _ in range(3):
        async with limiter.slot("alice", "answer"), limiter.reserve("alice", "answer", 1000) as reserved:
            reserved.settle(900)
        assert (await limiter.check_all([("alice", "member"), ("acme", "org")])).allowed
        assert (await limiter.check("alice", "member", quotas="1/day", algorithm="gcra")).allowed
    with pytest.raises(UnknownAction):
        await limiter.check("alice", "unheard-of")


async def test_there_are_slots_without_end() -> None:
    """Also without a directory, where an action without slots is known for an error else."""
    limiter = Limiter(MemoryStore(), POLICIES, enabled=False)
    async with limiter.slot("alice", "answer"), limiter.slot("alice", "answer"), limiter.slot("alice", "answer"):
        pass


async def test_nor_do_the_quotas_of_a_user_hold() -> None:
    store = MemoryStore()
    directory = Directory(store.directory)
    await directory.put_user(User("alice", quotas={"hint": "1/day"}))
    limiter = Limiter(store, [Policy("hint", "2/day")], directory=directory, enabled=False)
    assert (await limiter.check("alice", "hint", cost=7)).allowed


def test_for_threads_too() -> None:
    settings = configure_for_threads(**OFF)
    assert settings["limiter"].check("alice", "hint", cost=7).allowed
    assert settings["usage"] is None
    assert settings["exempt"]


def test_the_environment_says_so_too() -> None:
    assert not load_config(env={"RATELIMIT_ENABLED": "false"}).enabled
    assert load_config(env={"RATELIMIT_ENABLED": "True"}).enabled


async def test_a_reload_that_enables_it_goes_on_in_the_store_that_is_named() -> None:
    off = load_config(env={}, enabled=False, policies=[Policy("hint", "1/day")])
    before = Runtime.of(off)
    await before.limiter.check("alice", "hint", cost=7)
    after = Runtime.of(load_config(env={}, policies=[Policy("hint", "1/day")]), before)
    assert after.store is not before.store
    assert not (await after.limiter.check("alice", "hint", cost=7)).allowed
