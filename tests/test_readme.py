"""What only the README shows: answers that are the app's own, every way to write a quota, links.

That its blocks run and load is seen to with those of all other pages, in `tests/docs/`.
"""

from __future__ import annotations

import re

import httpx

from ratelimit.quota import parse_quotas
from tests.docs.pages import ROOT, blocks, run, text_of

README = "README.md"
TEXT = text_of(README)


async def test_the_first_example_answers_as_shown() -> None:
    app = (await run(blocks("python", README)[0]))["app"]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        first, _, third = [await client.post("/hints") for _ in range(3)]
    for shown, answer in zip(blocks("http", README), (first, third), strict=True):
        head, _, body = shown.text.partition("\n\n")
        status, *headers = head.splitlines()
        assert status == f"HTTP/1.1 {answer.status_code} {answer.reason_phrase}"
        for header in headers:
            name, _, value = header.partition(": ")
            assert timeless(answer.headers[name]) == timeless(value)
        assert timeless(answer.text.strip()) == timeless(body.strip())


async def test_the_fastapi_example_limits() -> None:
    (block,) = [block for block in blocks("python", README) if "FastAPI" in block.text]
    app = (await run(block))["app"]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert [(await client.post("/hints")).status_code for _ in range(6)] == [200] * 5 + [429]


def test_every_way_to_write_a_quota_is_one() -> None:
    table = TEXT.partition("| you write | it means |")[2].partition("\n\n")[0]
    written = [text for row in table.splitlines()[2:] for text in re.findall(r"`([^`]+)`", row.split(" | ")[0])]
    assert len(written) == 10
    assert [parse_quotas(text) for text in written]


def test_the_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        page, _, anchor = target.partition("#")
        assert (ROOT / page).exists(), target
        assert not anchor or anchor in anchors(page or README), target


def anchors(page: str) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", text_of(page), re.MULTILINE)}


def timeless(text: str) -> str:
    """Without the seconds until midnight."""
    return re.sub(r"(?<=t=)\d+|\b\d{3,5}(?= seconds)|^\d+$", "N", text)


def slug(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
