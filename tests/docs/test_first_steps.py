"""What a newcomer types first answers as the pages say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import blocks, lay_out, run, titled
from tests.http.apps import client_of

pytestmark = pytest.mark.usefixtures("noon")


async def test_the_third_request_is_refused_as_shown() -> None:
    app = (await run(titled("docs/index.md", "app.py")))["app"]
    async with client_of(app) as client:
        *_, third = [await client.post("/hints") for _ in range(3)]
    (shown,) = blocks("http", "docs/index.md")
    head, _, body = shown.text.partition("\n\n")
    status, *fields = head.splitlines()
    assert status == f"HTTP/1.1 {third.status_code} {third.reason_phrase}"
    assert dict(field.split(": ", 1) for field in fields).items() <= dict(third.headers).items()
    assert third.text == body.strip()


async def test_the_app_of_getting_started_limits_by_path_and_in_a_view(tmp_path: Path) -> None:
    lay_out("docs/getting-started.md", tmp_path)
    app = (await run(titled("docs/getting-started.md", "app.py")))["app"]
    async with client_of(app) as client:
        assert [(await client.post("/hints")).status_code for _ in range(6)] == [200] * 5 + [429]
        assert (await client.post("/exports?pages=7")).json() == {"left today": 3}
        assert (await client.post("/exports?pages=4")).status_code == 429
        wrong = ("-5", "0", "abc", "1.5", "100000000000000000000000", "٣")
        assert [(await client.post(f"/exports?pages={each}")).status_code for each in wrong] == [400] * len(wrong)
        assert (await client.post("/exports?pages=3")).json() == {"left today": 0}
