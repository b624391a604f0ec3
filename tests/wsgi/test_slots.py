"""Slots and reservations of requests to a WSGI app."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from ratelimit import NotHeld, Policy
from ratelimit.sync import Limiter
from ratelimit.wsgi import RateLimitMiddleware, limited
from tests.wsgi.apps import call, environ_of, hello, limiter_of

USER = "ip:203.0.113.7"


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


def test_an_answer_that_does_not_count_counts_for_more_than_what_the_app_has_settled() -> None:
    limiter = limiter_of(Policy("hint", "100/day", match="/**", cost=10, reserve=True, count="success"))

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        with pytest.raises(NotHeld):
            environ["ratelimit"].settle("other", 3)
        environ["ratelimit"].settle("hint", 3)
        start_response(next(statuses), [("Content-Type", "text/plain")])
        return [b""]

    statuses = iter(["500 Oops", "200 OK"])
    for left in (100, 97):
        call(RateLimitMiddleware(app, limiter=limiter))
        assert free(limiter) == left
