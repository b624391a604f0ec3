"""Locust's own command on the file, as its users start it: without a plan, on an app of their own."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from loadtest.generate import LOCUSTFILE
from ratelimit import Policy, RateLimitMiddleware
from ratelimit.testing.engines import free_port, run_with_parent
from tests.http.apps import hello, limiter_of
from tests.http.serving import served

pytestmark = pytest.mark.slow

WITHIN = 240.0


@pytest.fixture
async def target() -> AsyncIterator[str]:
    """An app with the middleware, two requests a day for each user."""
    limiter = limiter_of(Policy("hint", "2/day", match="POST /hints"))
    async with served(RateLimitMiddleware(hello, limiter=limiter, user_from="header:x-user")) as address:
        yield f"http://{address}"


def locust(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), *arguments]


async def test_without_its_page(target: str, tmp_path: Path) -> None:
    figures = tmp_path / "figures"
    done = await asyncio.to_thread(
        subprocess.run,
        locust(
            "--host", target, "--request", "POST /hints", "--user-header", "x-user", "--distinct-users", "2",
            "--headless", "--users", "6", "--spawn-rate", "6", "--run-time", "10s", "--json-file", str(figures),
        ),
        capture_output=True, text=True, timeout=WITHIN, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    counts = {row["name"]: row["num_requests"] for row in json.loads(figures.with_suffix(".json").read_text())}
    assert counts["/hints"] == 4  # two users, two a day
    assert counts["/hints (refused)"] >= 2


async def test_with_its_page(target: str) -> None:
    await asyncio.to_thread(_start_from_its_page, target)


def _start_from_its_page(target: str) -> None:
    with web_page("--host", target, "--request", "POST /hints") as page:
        swarm = urllib.parse.urlencode({"user_count": 2, "spawn_rate": 2, "host": target}).encode()
        assert json.load(urllib.request.urlopen(f"{page}/swarm", swarm, WITHIN))["success"]
        until = time.monotonic() + WITHIN
        while not (stats := json.load(urllib.request.urlopen(f"{page}/stats/requests", timeout=WITHIN))["stats"])[:-1]:
            assert time.monotonic() < until, stats
            time.sleep(0.1)
        assert {row["name"] for row in stats[:-1]} <= {"/hints", "/hints (refused)"}
        errors: list[Any] = json.load(urllib.request.urlopen(f"{page}/stats/requests", timeout=WITHIN))["errors"]
        assert errors == []


@contextmanager
def web_page(*arguments: str) -> Iterator[str]:
    port = free_port()
    page = f"http://127.0.0.1:{port}"
    command = locust("--web-host", "127.0.0.1", "--web-port", str(port), *arguments)
    process = run_with_parent(command)
    assert process.stdin is not None
    try:
        until = time.monotonic() + WITHIN
        while not _answers(page):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
        yield page
    finally:
        process.stdin.close()
        process.wait(WITHIN)


def _answers(page: str) -> bool:
    try:
        return bool(urllib.request.urlopen(page, timeout=WITHIN).status == 200)
    except urllib.error.URLError:
        return False
