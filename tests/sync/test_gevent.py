"""Under gevent, as in gunicorn's gevent workers, a greenlet that waits for the table lets the others go on."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from tests.faults import Behaviour, ok
from tests.faults.apart import Apart
from tests.faults.behaviours import Exchange
from tests.sync.test_usage import events_in

PROGRAM = """
from gevent import monkey
monkey.patch_all()
import gevent, sys
from ratelimit import Policy
from ratelimit.sync import Limiter, UsageLog, open_store

store = open_store(sys.argv[1])
limiter, usage = Limiter(store, [Policy("hint", "100/day")], deadline=60), UsageLog(store)

def view(number):
    decision = limiter.check(f"user-{number}", "hint")
    usage.record("alice", "hint", resource=f"{number:02}")
    return decision.reason

for _ in range(2):  # the second time, the log's thread is at work
    views = [gevent.spawn(view, number) for number in range(20)]
    gevent.joinall(views, raise_error=True)
    print({one.value for one in views})
usage.flush()
limiter.close()
"""


def all_at_once(count: int) -> Behaviour:
    """Answers checks only when so many of them wait for it."""
    waiting: list[asyncio.Future[None]] = []

    async def behave(exchange: Exchange) -> bool:
        if exchange.operation == "UpdateItem":
            waiting.append(turn := asyncio.get_running_loop().create_future())
            if len(waiting) == count:
                for one in waiting:
                    one.set_result(None)
                waiting.clear()
            await turn
        return await ok()(exchange)

    return behave


@pytest.mark.process
def test_greenlets_wait_side_by_side(apart: Apart, url: str) -> None:
    apart.server.always(all_at_once(20))
    command = [sys.executable, "-c", PROGRAM, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert (done.stdout, done.returncode) == ("{None}\n" * 2, 0), done.stderr
    assert set(events_in(apart)) == {f"{number:02}" for number in range(20)}
