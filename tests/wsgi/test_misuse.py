"""What the code around a limiter does wrong is an error that says what, and never a request without a limit."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from flask import Flask

import ratelimit
from ratelimit import LimiterClosed, MemoryStore, Policy
from ratelimit.flask import RateLimit
from ratelimit.functions import limited
from ratelimit.sync import Limiter
from ratelimit.wsgi import RateLimitMiddleware
from tests.wsgi.apps import call, hello, limiter_of

HINT = Policy("hint", "9/day", match="/**")


def by_the_middleware() -> tuple[Limiter, Any]:
    limiter = limiter_of(HINT)
    app = RateLimitMiddleware(hello, limiter=limiter)
    return limiter, lambda: call(app).status


def by_flask() -> tuple[Limiter, Any]:
    app = Flask("site_of_a_test")
    app.testing = True
    limits = RateLimit(app, policies=[HINT])
    app.post("/hints")(lambda: "ok")
    with app.app_context():
        return limits.limiter, lambda: app.test_client().post("/hints").status_code


def by_the_decorator() -> tuple[Limiter, Any]:
    limiter = Limiter(MemoryStore(), [HINT])
    return limiter, limited("hint", limiter=limiter, user="alice")(lambda: 200)


@pytest.mark.parametrize("made", [by_the_middleware, by_flask, by_the_decorator])
def test_a_closed_limiter_is_an_error_until_it_is_opened(made: Any) -> None:
    limiter, ask = made()
    assert ask() == 200
    limiter.close()
    for _ in range(2):
        with pytest.raises(LimiterClosed, match=r"limiter\.open\(\)"):
            ask()
    limiter.open()
    assert ask() == 200


@pytest.mark.filterwarnings("default::RuntimeWarning")
def test_a_view_that_forgets_to_await_fails_and_is_told_what_it_has_not_awaited() -> None:
    limiter = ratelimit.Limiter(MemoryStore(), [HINT])
    app = Flask("site_of_a_test")
    app.testing = True

    @app.post("/hints")
    def view() -> str:
        return str(limiter.check("alice", "hint").allowed)  # type: ignore[attr-defined]

    def ask() -> None:
        with pytest.raises(AttributeError, match="'coroutine' object has no attribute 'allowed'"):
            app.test_client().post("/hints")
        gc.collect()

    with pytest.warns(RuntimeWarning, match=r"'Limiter\.check' was never awaited"):
        ask()
