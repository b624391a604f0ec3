"""What the browser's tests look at: `ratelimit serve` on an engine, and users up to no good."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from ratelimit import Directory, Identity, Plan, UsageEvent, User, open_store
from ratelimit.clock import DAY, SystemClock
from ratelimit.dynamodb import TableSpec, create_table, parse_url
from ratelimit.testing.engines import start
from tests.dashboard.clients import OPERATOR, READER

USERS: Final = int(os.environ.get("RATELIMIT_TEST_USERS", "12"))
EVENTS: Final = int(os.environ.get("RATELIMIT_TEST_EVENTS", "600"))
RUNS: Final = "<img src=x onerror=window.ran=1>"
"""What would run where a text is read as markup; it is as long as the name of an action may be."""
SCRIPT: Final = "\"'><script>window.ran=1</script><svg onload=window.ran=1>{{7*7}}${window.ran=1}"
LINK: Final = "javascript:window.ran=1"
PLAN: Final = "<b onmouseover=window.ran=1>pro</b>"

CONFIG: Final = """
store = "{store}"
directory = true
usage = "memory"
deadline = 5
admin = "127.0.0.1:0"
admin_token = "{operator}"
admin_read_token = "{reader}"
user_from = ["header:x-api-key"]

[policies.hint]
quotas = ["{hint}", "3/minute"]
match = ["POST /hints"]
log = "all"
timeline = true

[policies.chat]
quotas = "4/minute"
mode = "shadow"
algorithm = "sliding_window"

[policies."{runs}"]
quotas = "20/hour"
"""


def configured(folder: Path, store: str, *, hint: str = "5/day") -> Path:
    """The file, new or changed."""
    path = folder / "ratelimit.toml"
    text = CONFIG.format(store=store, operator=OPERATOR, reader=READER, hint=hint, runs=RUNS)
    path.write_text(text, encoding="utf-8")
    return path


class Served(NamedTuple):
    """A service at work."""

    api: str
    page: str
    log: Path


@contextmanager
def serving(config: Path, *options: str) -> Iterator[Served]:
    """`ratelimit serve`, gone in the end. What it logs is in a file beside its configuration."""
    command = [sys.executable, "-m", "ratelimit", "serve", "--config", str(config), "--port", "0", "--json", *options]
    log = config.with_suffix(".log")
    with log.open("wb") as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as process:
        try:
            assert process.stdout is not None
            banner = json.loads(process.stdout.readline() or b"{}")
            assert "admin" in banner, log.read_text()
            yield Served(str(banner["listening"]), f"{banner['admin']}/dashboard/", log)
        finally:
            process.terminate()
            process.wait(60)


class Ground(NamedTuple):
    """An engine, its store's URL, and the service on it."""

    served: Served
    folder: Path
    store: str
    engine: ExitStack
    """Close it, and the store is down."""


@contextmanager
def ground(folder: Path, *, events: int = EVENTS) -> Iterator[Ground]:
    """All of it, with what the users did in the last five weeks."""
    with ExitStack() as engine:
        running = engine.enter_context(start())
        store = running.store_url("page", consumed="true")
        asyncio.run(_fill(running.store_url("page"), events))
        with serving(configured(folder, store)) as served:
            yield Ground(served, folder, store, engine)


async def _fill(url: str, count: int) -> None:
    now = SystemClock().now()
    await create_table(parse_url(url), TableSpec(gsi2=True))
    async with open_store(url) as store:
        directory = Directory(store.directory)
        await directory.put_plan(Plan(PLAN, {"hint": "50/day"}))
        await directory.put_user(User("alice", plan=PLAN, identities=[Identity.email("alice@example.com")]))
        await directory.put_user(User(SCRIPT, quotas={"hint": "9/day", RUNS: "2/day"}))
        if count == EVENTS:  # more than a page of either
            await asyncio.gather(*(directory.put_user(User(f"user-{number}")) for number in range(100)))
            await asyncio.gather(*(directory.put_plan(Plan(f"z-{number}", {})) for number in range(100)))
        events = [_event(number, now, count) for number in range(count)]
        batches = [events[at : at + 25] for at in range(0, len(events), 25)]
        for at in range(0, len(batches), 20):
            assert not any(await asyncio.gather(*map(store.events.put, batches[at : at + 20])))


def _event(number: int, now: int, count: int) -> UsageEvent:
    user = ["alice", SCRIPT, *(f"user-{each}" for each in range(USERS - 2))][number % USERS]
    return UsageEvent.of(
        user, ("hint", "chat", RUNS)[number % 3], now=now, at_ms=(now - number * 35 * DAY // count) // 1000,
        allowed=number % 4 > 0, status=200 if number % 4 else 429, duration=number % 90 / 2, cost=1 + number % 3,
        resource=(RUNS, LINK, "problem-7")[number % 7 % 3], request_id=SCRIPT[:99],
        metadata={RUNS: SCRIPT, "model": LINK} if number % 2 else None,
    )  # fmt: skip
