"""Under gevent, as in gunicorn's gevent workers, a greenlet that waits for the table lets the others go on."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.faults import slow
from tests.faults.apart import Apart
from tests.sync.test_usage import events_in

PROGRAM = """
from gevent import monkey
monkey.patch_all()
import gevent, sys, time
from ratelimit import Policy
from ratelimit.sync import Limiter, UsageLog, open_store

store = open_store(sys.argv[1])
limiter, usage = Limiter(store, [Policy("hint", "100/day")], deadline=20), UsageLog(store)

def view(number):
    decision = limiter.check(f"user-{number}", "hint")
    usage.record("alice", "hint", resource=f"{number:02}")
    return decision.reason

for _ in range(2):  # the second time, the log's thread is at work
    began = time.monotonic()
    views = [gevent.spawn(view, number) for number in range(20)]
    gevent.joinall(views, raise_error=True)
    print({one.value for one in views}, time.monotonic() - began < 15)
usage.flush()
limiter.close()
"""


@pytest.mark.process
def test_greenlets_wait_side_by_side(apart: Apart, url: str) -> None:
    apart.server.always(slow(1))
    command = [sys.executable, "-c", PROGRAM, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert (done.stdout, done.returncode) == ("{None} True\n" * 2, 0), done.stderr
    assert set(events_in(apart)) == {f"{number:02}" for number in range(20)}
