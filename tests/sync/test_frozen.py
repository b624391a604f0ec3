"""A process that is frozen between its calls, as a function on AWS Lambda is, and thawed when its connections died."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from ratelimit.dynamodb.transport.connection import CLOSE_LOOK_S
from tests.faults.apart import Apart
from tests.sync.test_usage import events_in

HANDLER = """
import sys
from ratelimit import Policy
from ratelimit.sync import Limiter, UsageLog, open_store

store = open_store(sys.argv[1])
limiter, usage = Limiter(store, [Policy("hint", "100/day")]), UsageLog(store)

def handler(event):
    decision = limiter.check(event, "hint")
    usage.record(event, "hint", resource=f"{decision.used}")
    usage.flush()
    return decision

for line in sys.stdin:
    decision = handler(line.strip())
    print(decision.used, decision.reason, store.inner.stats.retries, flush=True)
"""


@pytest.mark.process
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="Windows does not stop processes")
def test_frozen_and_thawed(apart: Apart, url: str) -> None:
    """The first call after it finds out about the connections, and nothing has to be sent twice."""
    command = [sys.executable, "-c", HANDLER, url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as function:
        assert function.stdin is not None
        assert function.stdout is not None

        def call() -> str:
            assert function.stdin is not None
            assert function.stdout is not None
            function.stdin.write("alice\n")
            function.stdin.flush()
            return function.stdout.readline().strip()

        assert call() == "1 None 0"
        for used in (2, 3):
            os.kill(function.pid, signal.SIGSTOP)
            os.waitid(os.P_PID, function.pid, os.WSTOPPED | os.WNOWAIT)
            apart.drop_connections()
            time.sleep(2 * CLOSE_LOOK_S)  # its clock goes on while it stands still
            os.kill(function.pid, signal.SIGCONT)
            assert call() == f"{used} None 0"
        function.stdin.close()
        assert function.wait(60) == 0
    assert events_in(apart) == ["1", "2", "3"]
