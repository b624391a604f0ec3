"""Functions that see the body of a WSGI request, and the app that reads the same one afterwards."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from typing import Any

import pytest
from starlette.requests import Request

from ratelimit import InvalidBody, Policy
from ratelimit.wsgi import RateLimitMiddleware, limited
from tests.wsgi.apps import Reply, call, environ_of, limiter_of


async def tokens(request: Request) -> int:
    return int((await request.json())["tokens"])


class Input(io.BytesIO):
    """A server's that would wait for ever where more is asked for than there is."""

    def read(self, size: int | None = -1, /) -> bytes:
        assert 0 <= (-1 if size is None else size) <= len(self.getvalue()) - self.tell(), "it would hang"
        return super().read(size)


def echo(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    body = environ["wsgi.input"]
    lines = [body.readline(100), body.read(2), *body]
    start_response("200 OK", [("content-type", "text/plain")])
    return [b"|".join(lines)]


def posted(app: Any, body: bytes, stream: Any = None, **more: Any) -> Reply:
    environ = {**environ_of(), "wsgi.input": Input(body), "CONTENT_LENGTH": str(len(body)), **more}
    return call(app, {**environ, **({} if stream is None else {"wsgi.input": stream})})


BODY = b'{"tokens":\n7,\n"more":\n[]}'


def test_the_app_reads_what_a_function_has_read() -> None:
    limiter = limiter_of(Policy("tokens", "9/day", match="/**", cost=tokens))
    app = RateLimitMiddleware(echo, limiter=limiter)
    answer = posted(app, BODY)
    assert (answer.status, answer.body.replace(b"|", b"")) == (200, BODY)
    assert limiter.peek("ip:203.0.113.7", "tokens").used == 7
    assert posted(app, BODY).status == 429


def test_without_a_length_it_ends_where_the_server_says() -> None:
    limiter = limiter_of(Policy("tokens", "9/day", match="/**", cost=tokens))
    app = RateLimitMiddleware(echo, limiter=limiter)
    chunked = posted(app, b"", io.BytesIO(BODY), CONTENT_LENGTH="", **{"wsgi.input_terminated": True})
    assert chunked.body.replace(b"|", b"") == BODY
    assert posted(app, BODY, CONTENT_LENGTH="").status == 400  # a body that nobody has told of


def test_a_body_that_is_too_large_is_answered_and_the_rest_of_it_is_left_to_an_app_that_wants_it() -> None:
    async def cost(request: Request) -> int:
        try:
            return len(await request.body())
        except InvalidBody:
            return 9

    strict = RateLimitMiddleware(
        echo, limiter=limiter_of(Policy("t", "9/day", match="/**", cost=tokens)), max_body_bytes=8
    )
    lax = RateLimitMiddleware(echo, limiter=limiter_of(Policy("t", "9/day", match="/**", cost=cost)), max_body_bytes=8)
    stream: dict[str, Any] = {"CONTENT_LENGTH": "", "wsgi.input_terminated": True}
    assert posted(strict, BODY).status == posted(strict, b"", io.BytesIO(BODY), **stream).status == 413
    large = BODY + b"\n" + b"x" * 200_000
    assert posted(lax, b"", io.BytesIO(large), **stream).body.replace(b"|", b"") == large


def test_a_client_that_leaves_and_what_is_not_json() -> None:
    limiter = limiter_of(Policy("tokens", "9/day", match="/**", cost=tokens))
    app = RateLimitMiddleware(echo, limiter=limiter)
    short = posted(app, b"", io.BytesIO(BODY), CONTENT_LENGTH="100")
    assert (short.status, json.loads(short.body)["detail"]) == (400, "the body has ended before it was complete")
    assert (posted(app, b"{").status, limiter.peek("ip:203.0.113.7", "tokens").used) == (400, 0)


def test_a_view_asks_with_a_function_of_the_body_and_reads_it_afterwards() -> None:
    limiter = limiter_of(Policy("tokens", "9/day"))
    ask = limited("tokens", cost=tokens)

    def view(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        ask(environ)
        return echo(environ, start_response)

    assert posted(RateLimitMiddleware(view, limiter=limiter), BODY).body.replace(b"|", b"") == BODY
    assert limiter.peek("ip:203.0.113.7", "tokens").used == 7


@pytest.mark.parametrize("cost", [lambda request: 1, 1])
def test_nothing_is_read_where_no_function_asks(cost: Any) -> None:
    stream = Input(BODY)
    environ = {**environ_of(), "wsgi.input": stream, "CONTENT_LENGTH": str(len(BODY))}
    seen: list[Any] = []

    def view(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        seen.append(environ["wsgi.input"])
        start_response("200 OK", [])
        return []

    app = RateLimitMiddleware(view, limiter=limiter_of(Policy("t", "9/day", match="/**", cost=cost)))
    list(app(environ, lambda *args: lambda data: None))
    assert (seen, stream.tell()) == ([stream], 0)
