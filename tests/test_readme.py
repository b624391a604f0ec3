"""The README is true: its Python runs, its TOML loads, its answers are the app's own, its links lead somewhere."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from types import CodeType
from typing import Any

import httpx
import pytest

from ratelimit.quota import parse_quotas
from ratelimit.wiring import load_checked

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [block for found, block in BLOCKS if found == language]


async def run(block: str) -> dict[str, Any]:
    """The block as a module of its own in which `await` may stand at the top; its names."""
    code = compile(block, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    assert isinstance(code, CodeType)
    names: dict[str, Any] = {"__name__": "readme"}
    result = eval(code, names)
    if inspect.isawaitable(result):
        await result
    return names


@pytest.mark.parametrize("block", blocks("python"))
async def test_the_python_runs(block: str) -> None:
    names = await run(block)
    for name, value in names.items():
        if name.startswith("test_"):
            await value()


@pytest.mark.parametrize("block", blocks("toml"))
def test_the_toml_loads(block: str, tmp_path: Path) -> None:
    path = tmp_path / "ratelimit.toml"
    path.write_text(block, encoding="utf-8")
    assert load_checked(path, env={}).policies


async def test_the_first_example_answers_as_shown() -> None:
    app = (await run(blocks("python")[0]))["app"]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        first, _, third = [await client.post("/hints") for _ in range(3)]
    for shown, answer in zip(blocks("http"), (first, third), strict=True):
        head, _, body = shown.partition("\n\n")
        status, *headers = head.splitlines()
        assert status == f"HTTP/1.1 {answer.status_code} {answer.reason_phrase}"
        for header in headers:
            name, _, value = header.partition(": ")
            assert timeless(answer.headers[name]) == timeless(value)
        assert timeless(answer.text.strip()) == timeless(body.strip())


async def test_the_fastapi_example_limits() -> None:
    (block,) = [block for block in blocks("python") if "FastAPI" in block]
    app = (await run(block))["app"]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert [(await client.post("/hints")).status_code for _ in range(6)] == [200] * 5 + [429]


def test_every_way_to_write_a_quota_is_one() -> None:
    table = TEXT.partition("| you write | it means |")[2].partition("\n\n")[0]
    written = [text for row in table.splitlines()[2:] for text in re.findall(r"`([^`]+)`", row.split(" | ")[0])]
    assert len(written) == 9
    assert [parse_quotas(text) for text in written]


def test_the_links_lead_somewhere() -> None:
    headings = {slug(heading) for heading in re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)}
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert target[1:] in headings if target.startswith("#") else (ROOT / target).exists(), target


def timeless(text: str) -> str:
    """Without the seconds until midnight."""
    return re.sub(r"(?<=t=)\d+|\b\d{3,5}(?= seconds)|^\d+$", "N", text)


def slug(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
