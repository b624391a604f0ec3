"""What `limited(...)` says in the place of its policy, where there is no event loop: by WSGI, and in Flask."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from flask import Flask

from ratelimit import InvalidCost, InvalidQuota, InvalidUser, MissingUser, Policy, UnknownAction
from ratelimit.flask import RateLimit
from ratelimit.flask import limited as flask_limited
from ratelimit.wsgi import RateLimitMiddleware, limited
from tests.wsgi.apps import Reply, call, limiter_of

PAGE = Policy("page", "9/day")

App = Callable[..., Iterable[bytes]]


def by_wsgi(*policies: Policy, **said: Any) -> App:
    ask = limited("page", **said)

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        remaining = ask(environ).remaining
        start_response("200 OK", [("content-type", "text/plain")])
        return [str(remaining).encode()]

    return RateLimitMiddleware(app, limiter=limiter_of(*(policies or [PAGE])))


def by_flask(*policies: Policy, **said: Any) -> App:
    app = Flask("site_of_a_test")
    RateLimit(app, policies=policies or [PAGE])

    @app.post("/hints")
    @flask_limited("page", **said)
    def view() -> str:
        return "hinted"

    app.testing = True
    return app


def ask(app: App, **headers: str) -> Reply:
    return call(app, headers=[(name.replace("_", "-"), value) for name, value in headers.items()])


BOTH = pytest.mark.parametrize("app_of", [by_wsgi, by_flask])


@BOTH
def test_each_may_be_a_function_of_the_request(app_of: Callable[..., App]) -> None:
    app = app_of(
        PAGE,
        quotas=lambda request: request.headers["x-quota"],
        user=lambda request: request.headers.get("x-user"),
        key=lambda request: request.headers.get("x-team"),
        cost=lambda request: int(request.headers.get("x-cost", 1)),
    )
    assert [ask(app, x_user="alice", x_quota="1/day").status for _ in range(2)] == [200, 429]
    assert ask(app, x_user="alice", x_quota="3/day", x_cost="2").status == 200
    assert ask(app, x_user="alice", x_quota="3/day").status == 429
    assert [ask(app, x_user=user, x_team="sales", x_quota="1/day").status for user in ("alice", "bob")] == [200, 429]


@BOTH
def test_fixed_quotas_need_no_policy(app_of: Callable[..., App]) -> None:
    app = app_of(Policy("other", "9/day"), quotas="1/day", user=["header:x-user", "address"], key="everybody")
    assert [ask(app, x_user=user).status for user in ("alice", "bob")] == [200, 429]
    with pytest.raises(UnknownAction):
        ask(app_of(Policy("other", "9/day")))


@BOTH
def test_a_source_that_names_nobody_is_never_the_address(app_of: Callable[..., App]) -> None:
    reply = ask(app_of(user="header:x-user"))
    assert reply.status == 401
    assert b"Who asks for 'page' is not known." in reply.body
    assert issubclass(MissingUser, InvalidUser)


@BOTH
def test_what_makes_no_sense_is_told(app_of: Callable[..., App]) -> None:
    with pytest.raises(InvalidQuota):
        app_of(quotas="5/fortnight")
    with pytest.raises(InvalidCost):
        app_of(cost=-1)
    with pytest.raises(InvalidUser):
        app_of(key="")
    with pytest.raises(InvalidQuota):
        ask(app_of(quotas=lambda request: 7))
