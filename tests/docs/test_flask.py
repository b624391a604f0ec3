"""What `docs/flask.md` says of its apps."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.docs.pages import run, titled
from tests.wsgi.apps import call

pytestmark = pytest.mark.usefixtures("noon")


async def app_of(title: str) -> Any:
    return (await run(titled("docs/flask.md", title)))["app"]


async def test_the_app_of_flask_limits_by_path_and_in_a_view() -> None:
    client = (await app_of("site.py")).test_client()
    assert [(await asyncio.to_thread(client.post, "/hints")).status_code for _ in range(6)] == [200] * 5 + [429]
    answers = [await asyncio.to_thread(client.get, f"/exports/{pages}") for pages in (7, 4, 3)]
    assert [answer.status_code for answer in answers] == [200, 429, 200]


async def test_the_first_app_limits_by_path() -> None:
    app = await app_of("wsgi.py")
    assert [(await asyncio.to_thread(call, app)).status for _ in range(6)] == [200] * 5 + [429]


async def test_a_view_asks_by_itself() -> None:
    app = await app_of("views.py")
    replies = [await asyncio.to_thread(call, app, path=path) for path in ("/?all", "/?all", "/")]
    assert [reply.status for reply in replies] == [200, 429, 200]
    assert replies[0].body == b"3 left today\n"
