"""What `docs/lambda.md` says of a function: its programs, frozen and thawed on a real engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from ratelimit import Policy
from ratelimit.dynamodb.transport.connection import CLOSE_LOOK_S
from ratelimit.sync import Limiter, open_store
from tests.docs.pages import titled
from tests.engines import Engine
from tests.faults.middlebox import Middlebox

EVENTS: dict[str, Any] = {
    "handler.py": {"requestContext": {"authorizer": {"jwt": {"claims": {"sub": "alice"}}}}},
    "asgi_lambda.py": {
        "version": "2.0",
        "rawPath": "/hints",
        "rawQueryString": "",
        "headers": {"host": "hints.example", "x-forwarded-for": "198.51.100.1", "x-forwarded-proto": "https"},
        "requestContext": {
            "http": {"method": "POST", "path": "/hints", "sourceIp": "198.51.100.1"},
            "stage": "$default",
        },
        "isBase64Encoded": False,
    },
}
USERS = {"handler.py": "alice", "asgi_lambda.py": "ip:198.51.100.1"}
# A connection is too old at once, where it takes ten seconds otherwise; and a slow machine gets time.
LOOP = """
import json, sys, warnings
from ratelimit.http import lifespan
from ratelimit.sync import Limiter
from ratelimit.dynamodb.transport import pool
pool.MAX_IDLE_S = float(sys.argv[1])
lifespan.OPEN_WAIT_S = Limiter.__init__.__kwdefaults__["deadline"] = 20.0
warnings.simplefilter("ignore")
from function import handler
for line in sys.stdin:
    print(handler(json.loads(line), None)["statusCode"], flush=True)
"""


class Function:
    """One instance of a function, in a process of its own."""

    def __init__(self, title: str, store: str, folder: Path, max_idle: float) -> None:
        path = f"{folder}:{Path(__file__).parents[2]}"
        (folder / "function.py").write_text(titled("docs/lambda.md", title).text)
        self._event = json.dumps(EVENTS[title]) + "\n"
        self._process = subprocess.Popen(
            [sys.executable, "-c", LOOP, str(max_idle)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={
                **os.environ,
                "RATELIMIT_STORE": store,
                "RATELIMIT_DEADLINE": "20",
                "PYTHONPATH": path,
            },
        )

    def call(self) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(self._event)
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.thaw()
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(60) == 0
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.mark.process
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="Windows does not stop processes")
@pytest.mark.parametrize("ending", ["closed", "forgotten"])
@pytest.mark.parametrize("title", list(EVENTS))
def test_the_first_check_after_a_freeze_is_right(title: str, ending: str, engine: Engine, tmp_path: Path) -> None:
    """Its connection has died meanwhile; it is a decision as ever, and counted once."""
    table = f"lambda-{uuid4().hex[:8]}"
    direct = engine.store_url(table, create="true")
    there = urlsplit(engine.endpoint)
    assert there.hostname is not None
    assert there.port is not None
    with open_store(direct) as store, Middlebox(there.hostname, there.port) as box:
        limiter = Limiter(store, [Policy("hint", "5/day")])
        through = direct.replace(f"%3A{there.port}&", f"%3A{box.port}&")
        assert through != direct
        with Function(title, through, tmp_path, 0.05 if ending == "forgotten" else 10) as function:
            for number in range(1, 7):
                assert function.call() == (200 if number <= 5 else 429)
                assert limiter.peek(USERS[title], "hint").used == min(number, 5)
                function.freeze()
                box.close_all() if ending == "closed" else box.forget_all()
                # Its clock goes on while it stands still: until a connection is looked at, or too old.
                time.sleep(2 * CLOSE_LOOK_S if ending == "closed" else 0.06)
                function.thaw()


def test_a_refusal_says_when() -> None:
    names: dict[str, Any] = {}
    exec(titled("docs/lambda.md", "handler.py").text, names)
    answers = [names["handler"](EVENTS["handler.py"], None) for _ in range(6)]
    assert [answer["statusCode"] for answer in answers] == [200] * 5 + [429]
    assert json.loads(answers[4]["body"])["left_today"] == 0
    assert 0 < int(answers[5]["headers"]["Retry-After"]) <= 86_400
