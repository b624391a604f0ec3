"""The extension of Flask: what the middleware does, and what only the app knows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask, stream_with_context
from flask import request as flask_request
from flask.views import MethodView
from flask_login import LoginManager, UserMixin, login_user, logout_user

from ratelimit import ConfigError, InvalidAction, Policy, QuotaExceeded, RateLimitError, UnknownAction
from ratelimit.flask import RateLimit, check, decisions, limited, settle
from ratelimit.wsgi import RateLimitMiddleware

HINT = Policy("hint", "2/day", match="POST /hints")


def site(*policies: Policy, **options: Any) -> Flask:
    app = Flask("site_of_a_test")
    app.secret_key = "of a test"
    RateLimit(app, policies=policies or [HINT], **options)

    @app.route("/hints", methods=["GET", "POST"])
    def hint() -> str:
        return f"{len(decisions())} checked"

    @app.route("/status/<int:status>", methods=["GET", "POST"])
    def status(status: int) -> tuple[str, int]:
        return "", status

    @app.get("/exports/<int:pages>")
    @limited("export", cost=lambda request: int(request.view_args["pages"]))
    def export(pages: int) -> str:
        return "exported"

    @app.get("/later")
    @limited("hint")
    async def later() -> str:
        return "async"

    @app.get("/broken")
    def broken() -> str:
        raise ValueError("a bug")

    @app.get("/handled")
    def handled() -> str:
        try:
            return str(check("hint", cost=9).remaining)
        except QuotaExceeded:
            return "too much"

    @app.get("/stream")
    def stream() -> Any:
        return iter("abc")

    return app


def used(app: Flask, action: str = "hint", user: str = "ip:127.0.0.1") -> int:
    limiter = app.extensions["ratelimit"].limiter
    return int(limiter.peek(user, action).used)


def test_requests_are_limited_by_path() -> None:
    client = site().test_client()
    answers = [client.post("/hints") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[0].text == "1 checked"
    assert [answer.headers["ratelimit"].partition(";t=")[0] for answer in answers] == [
        '"hint";r=1',
        '"hint";r=0',
        '"hint";r=0',
    ]
    assert answers[2].content_type == "application/problem+json"
    assert answers[2].json is not None
    assert answers[2].json["violated-policies"] == ["hint"]
    assert "ratelimit" not in client.get("/hints").headers


def test_what_no_route_fits_counts_too() -> None:
    app = site(Policy("api", "2/day", match="/**"))
    assert [app.test_client().get(path).status_code for path in ("/nothing", "/status/200", "/hints")] == [
        404,
        200,
        429,
    ]


def test_what_counts_is_how_the_app_answers() -> None:
    app = site(Policy("hint", "2/day", match="/**", count="success"))
    client = app.test_client()
    for path in ("/status/500", "/nothing", "/broken"):
        assert client.get(path).status_code >= 400
    assert used(app) == 0
    app.testing = True
    with pytest.raises(ValueError, match="a bug"):
        client.get("/broken")
    assert (used(app), client.get("/status/200").headers["ratelimit"][:10]) == (0, '"hint";r=1')


def test_a_view_asks_and_a_refusal_is_answered() -> None:
    app = site(Policy("api", "9/day", match="/**"), Policy("export", "5/day"))
    client = app.test_client()
    assert [client.get(f"/exports/{pages}").status_code for pages in (3, 3, 2, 1)] == [200, 429, 200, 429]
    assert client.get("/exports/1").headers["ratelimit"].startswith('"export";r=0')
    assert (used(app, "api"), used(app, "export")) == (5, 5)


def test_a_view_may_be_async_and_may_handle_its_refusal() -> None:
    client = site(Policy("hint", "1/day")).test_client()
    assert client.get("/handled").text == "too much"
    assert [client.get("/later").status_code for _ in range(2)] == [200, 429]


def test_who_is_logged_in_is_the_user() -> None:
    app = site()
    login = LoginManager(app)

    class LoggedIn(UserMixin):  # type: ignore[misc]
        def __init__(self, name: str) -> None:
            self.id = name

    login.user_loader(LoggedIn)

    @app.post("/login/<name>")
    def log_in(name: str) -> str:
        login_user(LoggedIn(name))
        return name

    @app.post("/logout")
    def log_out() -> str:
        logout_user()
        return ""

    client = app.test_client()
    client.post("/login/alice")
    assert [client.post("/hints").status_code for _ in range(3)] == [200, 200, 429]
    client.post("/logout")
    assert client.post("/hints").status_code == 200
    assert (used(app, user="alice"), used(app)) == (2, 1)


def test_an_answer_of_the_apps_own() -> None:
    def teapot(request: Any, decision: Any) -> tuple[dict[str, str], int]:
        return {"no more": decision.policy, "on": request.path}, 418

    client = site(HINT, on_refused=teapot).test_client()
    *_, refused = [client.post("/hints") for _ in range(3)]
    assert (refused.status_code, refused.json) == (418, {"no more": "hint", "on": "/hints"})
    assert refused.headers["ratelimit"].startswith('"hint";r=0')


@pytest.mark.parametrize(("path", "policy"), [("/hints", HINT), ("/exports/1", Policy("export", "1/day"))])
def test_a_handler_of_the_apps_own_answers_what_is_refused_before_a_view_and_in_it(path: str, policy: Policy) -> None:
    app = site(policy, Policy("whole", "9/day", match="/**", count="success"))

    @app.errorhandler(QuotaExceeded)
    def refused(error: QuotaExceeded) -> tuple[dict[str, str], int]:
        return {"no more": error.decision.policy}, 418

    answers = [app.test_client().open(path, method="GET" if path.startswith("/e") else "POST") for _ in range(3)]
    assert (answers[2].status_code, answers[2].json) == (418, {"no more": policy.name})
    assert int(answers[2].headers["retry-after"]) > 0
    assert used(app, action="whole") == [one.status_code for one in answers].count(200)


def test_a_decorator_without_a_policy_and_one_of_a_class_are_told_at_once() -> None:
    with pytest.raises(InvalidAction, match=r"as in limited\('hint'\), not <function"):
        limited(lambda: "hints")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"say decorators = \[limited\('hint'\)\]"):
        limited("hint")(MethodView)


async def account(request: Any) -> str:
    return str((await request.form())["name"])


def test_a_function_and_the_view_read_one_form() -> None:
    app = site(Policy("login", "1/day", match="POST /login", user_from=account))

    @app.post("/login")
    def login() -> str:
        return flask_request.form["name"]

    client = app.test_client()
    answers = [client.post("/login", data={"name": name}) for name in ("alice", "alice", "bob")]
    assert [answer.status_code for answer in answers] == [200, 429, 200]
    assert [answers[0].text, answers[2].text] == ["alice", "bob"]


def test_hooks_of_the_app_see_a_refusal() -> None:
    """As those that let another site's pages read it do."""
    app = site()

    @app.after_request
    def allow(response: Any) -> Any:
        response.headers["access-control-allow-origin"] = "*"
        return response

    client = app.test_client()
    assert [client.post("/hints").headers["access-control-allow-origin"] for _ in range(3)] == ["*"] * 3


@pytest.mark.parametrize("path", ["/hints", "/stream", "/broken", "/exports/9"])
def test_each_request_is_recorded_once(path: str) -> None:
    app = site(Policy("api", "2/day", match="/**"), Policy("export", "2/day"), usage="memory")
    usage = app.extensions["ratelimit"].usage
    answer = app.test_client().get(path)
    assert answer.data
    answer.close()
    usage.close()
    events = usage.events("ip:127.0.0.1").events
    wanted = {"/broken": 500, "/exports/9": 429}.get(path, 200)
    assert [(event.status, event.resource) for event in events if event.action == "api"] == [(wanted, path)]
    assert len(events) == (2 if path == "/exports/9" else 1)


def test_settings_come_from_the_apps_configuration() -> None:
    app = Flask("site_of_a_test")
    app.config["RATELIMIT"] = {"policies": {"hint": {"quotas": "1/day", "match": "/**"}}, "headers": "legacy"}
    limits = RateLimit(headers="both")
    limits.init_app(app)
    client = app.test_client()
    assert [client.get("/").status_code for _ in range(2)] == [404, 429]
    assert "ratelimit" not in client.get("/").headers
    with app.app_context():
        assert set(limits.limiter.policies) == {"hint"}
        assert limits.usage is None
    app.config["RATELIMIT"] = ["hint"]
    with pytest.raises(ConfigError, match="as a dict"):
        limits.init_app(app)
    app.config["RATELIMIT"] = {"polices": {}}
    with pytest.raises(ConfigError, match="policies"):
        limits.init_app(app)


def test_what_is_not_there_is_told() -> None:
    app = Flask("site_of_a_test")
    app.testing = True
    app.get("/")(limited("hint")(lambda: ""))
    with pytest.raises(RateLimitError, match="has no RateLimit"):
        app.test_client().get("/")
    app = site(Policy("other", "1/day"))
    app.testing = True
    with pytest.raises(UnknownAction, match="'hint'"):
        app.test_client().get("/later")


def test_within_the_middleware_each_unit_is_accounted_for_once() -> None:
    app = site(Policy("hint", "1/day", match="/hints"))
    outer = RateLimitMiddleware.from_config(app.wsgi_app, policies=[Policy("api", "9/day", match="/**")])
    app.wsgi_app = outer  # type: ignore[method-assign]
    answers = [app.test_client().get("/hints") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429]
    assert answers[0].headers["ratelimit"].partition(", ")[2].startswith('"hint";r=0')
    assert outer.limiter.peek("ip:127.0.0.1", "api").used == 2, "the app has been reached"


def test_what_a_request_holds_is_held_until_its_stream_has_ended() -> None:
    """Until then, what it has reserved can be settled."""
    slots = Policy("slots", "1 concurrent", match=["GET /metered", "GET /status/**"])
    app = site(slots, Policy("tokens", "100/day", match="GET /metered", cost=10, reserve=True))

    @app.get("/metered")
    def metered() -> Any:
        def pieces() -> Iterator[str]:
            yield "a"
            settle("tokens", 3)
            yield "b"

        return stream_with_context(pieces())

    client, limiter = app.test_client(), app.extensions["ratelimit"].limiter
    answer = client.get("/metered", buffered=False)
    assert client.get("/status/200").status_code == 429
    assert answer.get_data() == b"ab"
    answer.close()
    assert [client.get("/status/200").status_code for _ in range(2)] == [200, 200]
    assert limiter.peek("ip:127.0.0.1", "tokens").used == 3
    with app.app_context(), app.test_request_context("/"), pytest.raises(RateLimitError, match="do it in a view"):
        settle("tokens", 1)


async def name_of(asked: Any) -> str:
    return str((await asked.json())["name"])


async def words(asked: Any) -> int:
    return len(str((await asked.json())["text"]).split())


@pytest.mark.parametrize("reads_first", [True, False])
def test_the_app_may_read_the_body_before_the_limits_do(reads_first: bool) -> None:
    app = Flask("site_of_a_test")
    if reads_first:
        app.before_request(lambda: flask_request.get_json(silent=True) and None)
    login = Policy("login", "1/day", match="POST /login", user_from=name_of)
    RateLimit(app, policies=[login, Policy("text", "9/day", cost=words)])
    limiter = app.extensions["ratelimit"].limiter

    @app.post("/login")
    def view() -> Any:
        return flask_request.get_json()["name"]

    @app.post("/text")
    @limited("text")
    def text() -> Any:
        return flask_request.get_json()["text"]

    client = app.test_client()
    answers = [client.post("/login", json={"name": name}) for name in ("alice", "alice", "bob")]
    assert [answer.status_code for answer in answers] == [200, 429, 200]
    assert [answers[0].text, answers[2].text] == ["alice", "bob"]
    assert client.post("/text", json={"text": "four words and more"}).text == "four words and more"
    assert limiter.peek("ip:127.0.0.1", "text").used == 4


def test_a_body_that_the_app_has_read_as_a_form_is_told() -> None:
    app = Flask("site_of_a_test")
    app.testing = True
    app.before_request(lambda: flask_request.form and None)
    RateLimit(app, policies=[Policy("login", "1/day", match="POST /login", user_from=account)])
    with pytest.raises(RateLimitError, match="has read as a form"):
        app.test_client().post("/login", data={"name": "alice"})
