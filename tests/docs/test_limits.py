"""What `docs/limits.md` says of its apps, on an engine."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

from tests.docs.pages import run, titled
from tests.engines import Engine
from tests.http.apps import client_of


async def names_of(title: str, engine: Engine) -> dict[str, Any]:
    shown = titled("docs/limits.md", title).text
    url = engine.store_url(f"limits-{uuid4().hex[:8]}", create="true")
    return await run(shown.replace("dynamodb://my-table?region=eu-west-1", url))


async def test_flask_limiter_counts_in_the_table(engine: Engine) -> None:
    page = await names_of("flask_app.py", engine)
    client = page["app"].test_client()
    assert [(await asyncio.to_thread(client.post, "/hints")).status_code for _ in range(6)] == [200] * 5 + [429]
    await asyncio.to_thread(page["limiter"].storage.close)


async def test_slowapi_counts_in_the_table(engine: Engine) -> None:
    page = await names_of("slowapi_app.py", engine)
    async with client_of(page["app"]) as client:
        assert [(await client.post("/hints")).status_code for _ in range(6)] == [200] * 5 + [429]
    await asyncio.to_thread(page["limiter"]._storage.close)


async def test_limits_counts_in_the_table(engine: Engine) -> None:
    page = await names_of("by_itself.py", engine)
    assert [await page["hint"]("alice") for _ in range(6)] == [True] * 5 + [False]
    await page["limiter"].storage.close()
