"""What is WSGI's own: when an answer begins and ends, errors, views that ask, one middleware in another."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4
from wsgiref.util import FileWrapper

import pytest
from flask import Flask

import ratelimit
from ratelimit import LimiterClosed, MemoryStore, Policy, QuotaExceeded, functions
from ratelimit.errors import ConfigError, RateLimitError, UnknownAction
from ratelimit.flask import RateLimit
from ratelimit.sync import InsideEventLoop, Limiter, UsageLog, open_store
from ratelimit.wsgi import RateLimitMiddleware, configure, limited
from tests.wsgi.apps import HINT, call, environ_of, hello, limiter_of

USER = "ip:203.0.113.7"
SUCCESS = Policy("hint", "5/day", match="/**", count="success")


def used(limiter: Limiter, user: str = USER, action: str = "hint") -> int:
    return limiter.peek(user, action).used


def test_a_generator_that_begins_its_answer_late() -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("content-type", "text/plain")])
        yield b"one"
        yield b"two"

    reply = call(RateLimitMiddleware(app, limiter=limiter_of()))
    assert (reply.status, reply.body, reply.header("ratelimit")) == (200, b"onetwo", ['"hint";r=4;t=43200'])


def test_pieces_go_out_one_by_one() -> None:
    made = []

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        for number in range(3):
            made.append(number)
            yield b"%d" % number

    body = iter(RateLimitMiddleware(app, limiter=limiter_of())(environ_of(), lambda *_: None))  # type: ignore[arg-type]
    assert (next(body), made) == (b"0", [0])
    assert (next(body), made) == (b"1", [0, 1])


def test_what_counts_is_what_the_app_has_said_last() -> None:
    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("content-type", "text/plain")])
        try:
            raise ValueError
        except ValueError:
            start_response("500 Oh", [("content-type", "text/plain")], sys.exc_info())
        return [b"no"]

    limiter = limiter_of(SUCCESS)
    reply = call(RateLimitMiddleware(app, limiter=limiter))
    assert (reply.status, used(limiter)) == (500, 0)
    assert reply.header("ratelimit") == ['"hint";r=5;t=43200']


def test_units_are_back_before_the_answer_begins() -> None:
    limiter = limiter_of(SUCCESS)

    def start_response(status: str, headers: Any) -> None:
        assert used(limiter) == 0

    list(RateLimitMiddleware(hello, limiter=limiter)(environ_of(headers=[("x-status", "404")]), start_response))  # type: ignore[arg-type]


def test_what_cannot_be_given_back_keeps_neither_the_rest_nor_the_answer(caplog: pytest.LogCaptureFixture) -> None:
    closed, inner = limiter_of(SUCCESS), limiter_of(SUCCESS)

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        closed.close()
        start_response("404 Not Found", [("content-type", "text/plain")])
        return [b"no"]

    reply = call(RateLimitMiddleware(RateLimitMiddleware(app, limiter=inner), limiter=closed))
    assert (reply.status, reply.body, used(inner)) == (404, b"no", 0)
    assert [record.message for record in caplog.records] == ["a refund failed"]


def test_an_app_that_fails_or_never_answers_has_failed() -> None:
    def broken(environ: Any, start_response: Any) -> Iterable[bytes]:
        raise ValueError("a bug")

    def half(environ: Any, start_response: Any) -> Iterator[bytes]:
        raise ValueError("a bug")
        yield b""

    for app in (broken, half):
        limiter = limiter_of(SUCCESS)
        with UsageLog(limiter.store, clock=limiter.clock) as usage:
            with pytest.raises(ValueError, match="a bug"):
                call(RateLimitMiddleware(app, limiter=limiter, usage=usage))
            assert used(limiter) == 0
            usage.flush()
            assert [event.status for event in usage.events(USER).events] == [500]


def test_an_old_app_writes() -> None:
    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        write = start_response("200 OK", [("content-type", "text/plain")])
        write(b"old ")
        return [b"and new"]

    reply = call(RateLimitMiddleware(app, limiter=limiter_of()))
    assert (reply.body, reply.header("ratelimit")) == (b"old and new", ['"hint";r=4;t=43200'])


def test_a_file_stays_one_so_that_the_server_may_send_it_by_itself(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        return FileWrapper((tmp_path / "a").open("rb"))

    body = RateLimitMiddleware(app, limiter=limiter_of())(environ_of(), lambda *_: None)  # type: ignore[arg-type]
    assert isinstance(body, FileWrapper)
    body.close()


def test_an_event_is_kept_before_the_last_piece_goes_out() -> None:
    limiter = limiter_of()

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("content-length", "4")])
        return [b"ab", b"cd"]

    with UsageLog(limiter.store, clock=limiter.clock) as usage:
        body = iter(RateLimitMiddleware(app, limiter=limiter, usage=usage)(environ_of(), lambda *_: None))  # type: ignore[arg-type]
        assert (next(body), usage.stats.accepted) == (b"ab", 0)
        assert (next(body), usage.stats.accepted) == (b"cd", 1)
        assert list(body) == []
        body.close()  # type: ignore[attr-defined]
        assert usage.stats.accepted == 1


def test_a_client_that_has_gone_is_recorded() -> None:
    limiter = limiter_of()

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        while True:
            yield b"x"

    with UsageLog(limiter.store, clock=limiter.clock) as usage:
        body = iter(RateLimitMiddleware(app, limiter=limiter, usage=usage)(environ_of(), lambda *_: None))  # type: ignore[arg-type]
        next(body)
        body.close()  # type: ignore[attr-defined]
        assert usage.stats.accepted == 1


def asking(environ: Any, start_response: Any) -> Iterable[bytes]:
    decision = limited("export", cost=2)(environ)
    start_response("200 OK", [("content-type", "text/plain")])
    return [f"{decision.remaining} left".encode()]


def asking_late(environ: Any, start_response: Any) -> Iterator[bytes]:
    yield from asking(environ, start_response)


@pytest.mark.parametrize("app", [asking, asking_late])
def test_a_view_asks_and_a_refusal_is_answered(app: Any) -> None:
    limiter = limiter_of(Policy("api", "9/day", match="/**"), Policy("export", "5/day"))
    middleware = RateLimitMiddleware(app, limiter=limiter)
    assert [call(middleware).body for _ in range(2)] == [b"3 left", b"1 left"]
    refused = call(middleware)
    assert (refused.status, refused.header("content-type")) == (429, ["application/problem+json"])
    assert refused.header("ratelimit") == ['"export";r=1;t=43200']
    assert used(limiter, action="api") == 3, "the app has acted on it"


def test_a_view_that_asks_for_what_is_not_there() -> None:
    with pytest.raises(RateLimitError, match="needs RateLimitMiddleware"):
        call(asking)
    with pytest.raises(UnknownAction, match="'export'"):
        call(RateLimitMiddleware(asking, limiter=limiter_of()))


def test_a_view_may_handle_its_refusal() -> None:
    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        try:
            limited("hint")(environ)
        except QuotaExceeded:
            start_response("200 OK", [("content-type", "text/plain")])
            return [b"later"]
        raise AssertionError

    assert call(RateLimitMiddleware(app, limiter=limiter_of(Policy("hint", "0/day")))).body == b"later"


def test_a_refusal_by_another_limiter_leaves_spent_what_the_app_has_acted_on() -> None:
    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        raise QuotaExceeded(limiter_of(Policy("mail", "0/day")).check("alice", "mail"))

    limiter = limiter_of(Policy("api", "9/day", match="/**"))
    assert call(RateLimitMiddleware(app, limiter=limiter)).status == 429
    assert used(limiter, action="api") == 1


def test_a_refusal_after_the_answer_has_begun_is_an_error_and_recorded() -> None:
    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])(b"half")
        limited("none")(environ)
        return []

    limiter = limiter_of(HINT, Policy("none", "0/day"))
    with UsageLog(limiter.store, clock=limiter.clock) as usage:
        with pytest.raises(QuotaExceeded):
            RateLimitMiddleware(app, limiter=limiter, usage=usage)(environ_of(), lambda *_: len)
        usage.flush()
        events = [(event.action, event.allowed) for event in usage.events(USER).events]
        assert sorted(events) == [("hint", True), ("none", False)]


def test_one_middleware_within_another() -> None:
    outer, inner = limiter_of(Policy("api", "3/day", match="/**")), limiter_of(Policy("hint", "1/hour", match="/hints"))
    app = RateLimitMiddleware(RateLimitMiddleware(hello, limiter=inner), limiter=outer)
    assert call(app).header("ratelimit") == ['"api";r=2;t=43200, "hint";r=0;t=3600']
    reply = call(app)
    assert (reply.status, reply.header("ratelimit")) == (429, ['"hint";r=0;t=3600'])
    assert used(outer, action="api") == 1


def test_the_servers_own_user() -> None:
    limiter = limiter_of()
    app = RateLimitMiddleware(hello, limiter=limiter)
    call(app, REMOTE_USER="alice")
    call(app, headers=[("remote-user", "mallory")])
    assert (used(limiter, "alice"), used(limiter)) == (1, 1)


def test_a_unix_socket_has_no_address() -> None:
    limiter = limiter_of()
    call(RateLimitMiddleware(hello, limiter=limiter), address="")
    assert used(limiter, "ip:unknown") == 1


def test_a_function_that_has_to_wait_is_told_of() -> None:
    import asyncio

    async def user(request: Any) -> str:
        await asyncio.sleep(0)
        return "alice"

    with pytest.raises(ConfigError, match="one is async"):
        call(RateLimitMiddleware(hello, limiter=limiter_of(), user_from=[user]))


async def test_in_an_event_loop_it_names_what_to_use_there() -> None:
    with pytest.raises(InsideEventLoop, match="from ratelimit import Limiter"):
        call(RateLimitMiddleware(hello, limiter=limiter_of()))


def test_parts_for_event_loops_are_refused() -> None:
    store = MemoryStore()
    with pytest.raises(ConfigError, match=r"limiter: expected a Limiter of ratelimit\.sync"):
        RateLimitMiddleware(hello, limiter=ratelimit.Limiter(store, [HINT]))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"usage: expected a UsageLog of ratelimit\.sync"):
        RateLimitMiddleware(hello, limiter=limiter_of(), usage=ratelimit.UsageLog(store))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"user_from\[0\]"):
        RateLimitMiddleware(hello, limiter=limiter_of(), user_from="heder:x")


def test_made_of_a_configuration(tmp_path: Path) -> None:
    path = tmp_path / "ratelimit.toml"
    path.write_text(
        'headers = "legacy"\nusage = "memory"\n[policies.hint]\nquotas = "1/day"\nmatch = "/hints"', encoding="utf-8"
    )
    app = RateLimitMiddleware.from_config(hello, path, user_from="header:x-api-key")
    replies = [call(app, headers=[("x-api-key", "alice")]) for _ in range(2)]
    assert [reply.status for reply in replies] == [200, 429]
    assert replies[0].header("x-ratelimit-remaining") == ["0"]
    assert app.usage is not None
    app.usage.close()
    assert len(app.usage.events("alice").events) == 2
    with pytest.raises(ConfigError, match="mirror"):
        configure(store="dynamodb://one?region=eu-west-1", mirror="dynamodb://two?region=eu-west-1")


@pytest.mark.parametrize("where", ["memory", "dynamodb"])
def test_policies_that_are_decided_together(where: str, request: pytest.FixtureRequest) -> None:
    """What an organisation has no room for is not taken from its members either; nor is what does not count."""
    url = "memory://"
    if where == "dynamodb":
        engine = request.getfixturevalue("engine")
        url = engine.store_url(f"together-{uuid4().hex[:8]}", create="true")
    member = Policy("member", "9/day", match="/**", together="org", on_unavailable="deny", count="success")
    org = Policy("org", "2/day", user_from="header:x-org", on_unavailable="deny", count="success")
    limiter = Limiter(open_store(url), [member, org])
    app = RateLimitMiddleware(hello, limiter=limiter)
    environs = [environ_of(HTTP_X_ORG="acme", HTTP_X_STATUS=status) for status in ("500", "200", "200", "200")]
    assert [call(app, environ).status for environ in environs] == [500, 200, 200, 429]
    assert [limiter.peek(*key).used for key in (("ip:203.0.113.7", "member"), ("acme", "org"))] == [2, 2]
    limiter.close()


# What the code around a limiter does wrong is an error that says what, and never a request without a limit.


ANY_HINT = Policy("hint", "9/day", match="/**")


def by_the_middleware() -> tuple[Limiter, Any]:
    limiter = limiter_of(ANY_HINT)
    app = RateLimitMiddleware(hello, limiter=limiter)
    return limiter, lambda: call(app).status


def by_flask() -> tuple[Limiter, Any]:
    app = Flask("site_of_a_test")
    app.testing = True
    limits = RateLimit(app, policies=[ANY_HINT])
    app.post("/hints")(lambda: "ok")
    with app.app_context():
        return limits.limiter, lambda: app.test_client().post("/hints").status_code


def by_the_decorator() -> tuple[Limiter, Any]:
    limiter = Limiter(MemoryStore(), [ANY_HINT])
    return limiter, functions.limited("hint", limiter=limiter, user="alice")(lambda: 200)


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
    limiter = ratelimit.Limiter(MemoryStore(), [ANY_HINT])
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


# Slots and reservations of requests to a WSGI app.


def free(limiter: Limiter) -> int | None:
    return limiter.peek(USER, "hint").remaining


def test_held_until_the_body_is_complete_or_closed() -> None:
    limiter = limiter_of(Policy("hint", "1 concurrent", match="/**"))

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"a"
        yield b"b"

    guarded = RateLimitMiddleware(app, limiter=limiter)
    for ends in ("read", "closed"):
        body: Any = guarded(environ_of(), lambda *_: None)  # type: ignore[arg-type]
        assert next(iter(body)) == b"a"
        assert free(limiter) == 0
        assert call(guarded).status == 429
        if ends == "read":
            assert list(body) == [b"b"]
        body.close()
        assert free(limiter) == 1


def test_an_app_that_fails() -> None:
    limiter = limiter_of(Policy("hint", "1 concurrent"))

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        limited("hint")(environ)
        assert free(limiter) == 0
        raise RuntimeError

    with pytest.raises(RuntimeError):
        call(RateLimitMiddleware(app, limiter=limiter))
    assert free(limiter) == 1


def test_what_is_reserved_is_settled_when_the_answer_has_ended() -> None:
    limiter = limiter_of(Policy("hint", "100/day", match="/**", cost=10, reserve=True))
    assert call(RateLimitMiddleware(hello, limiter=limiter)).status == 200
    assert free(limiter) == 90
    assert "r" not in {field for field, units in limiter._core.store.records.read(_key()).items() if units}  # type: ignore[attr-defined]


def _key() -> Any:
    from ratelimit.names import Key

    return Key(USER, "hint")
