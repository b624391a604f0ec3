"""What `docs/mounts.md` says of where patterns are compared."""

from __future__ import annotations

import pytest

from tests.docs.pages import run, titled
from tests.http.apps import client_of

pytestmark = pytest.mark.usefixtures("noon")


async def test_a_mounted_app_is_limited_by_its_own_paths() -> None:
    app = (await run(titled("docs/mounts.md", "mounted.py")))["app"]
    async with client_of(app) as client:
        assert [(await client.post("/api/hints")).status_code for _ in range(6)] == [200] * 5 + [429]
