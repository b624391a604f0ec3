"""What threads send by: TLS in full, and credentials that are refreshed beside the checks."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trustme
from botocore.credentials import RefreshableCredentials
from botocore.exceptions import CredentialRetrievalError

from ratelimit import Policy, StoreUnavailable
from ratelimit.blocking import Runner
from ratelimit.blocking_wait import BlockingDeadline
from ratelimit.dynamodb.transport.connection import CLOSE_LOOK_S
from ratelimit.dynamodb.transport.signing import ThreadCredentials
from ratelimit.sync import Limiter, open_store
from tests.faults import FaultServer
from tests.faults.apart import Apart
from tests.faults.oddities import chunked
from tests.sync.test_faults import wait_until_ended
from tests.sync.test_usage import events_in

HINT = Policy("hint", "100/day", on_unavailable="deny")


@pytest.fixture
def secure(authority: trustme.CA) -> Iterator[Callable[[str], Apart]]:
    """Makes a server with a certificate for a name."""
    made: list[Apart] = []

    def make(name: str) -> Apart:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(context)
        made.append(Apart(FaultServer(context)).__enter__())
        return made[-1]

    yield make
    for one in made:
        one.__exit__(None, None, None)


def url_of(apart: Apart) -> str:
    return f"dynamodb://limits?region=eu-west-1&endpoint={apart.server.endpoint}"


@pytest.mark.usefixtures("trusted")
def test_over_tls(secure: Callable[[str], Apart]) -> None:
    apart = secure("localhost")
    with Limiter(open_store(url_of(apart)), [HINT]) as limiter:
        with ThreadPoolExecutor(4) as pool:
            decisions = list(pool.map(lambda _: limiter.check("alice", "hint"), range(40)))
        assert sorted(decision.used for decision in decisions) == list(range(1, 41))
        stats = limiter.store.inner.stats  # type: ignore[attr-defined]
        assert (stats.fallbacks, stats.dropped) == ({}, {})
        apart.server.always(chunked(size=100))  # an answer in many records
        assert limiter.check("bob", "hint").reason is None
        apart.drop_connections()
        wait_until_ended(limiter)
        assert limiter.check("bob", "hint").used == 2


@pytest.mark.usefixtures("trusted")
def test_a_certificate_for_another_name(secure: Callable[[str], Apart]) -> None:
    with pytest.raises(StoreUnavailable, match="no trusted connection"):
        open_store(url_of(secure("elsewhere.test")))


def test_an_authority_that_nobody_trusts(secure: Callable[[str], Apart]) -> None:
    with pytest.raises(StoreUnavailable, match="AWS_CA_BUNDLE"):
        open_store(url_of(secure("localhost")))


@pytest.mark.usefixtures("trusted")
def test_our_own_connections_verify_as_well(secure: Callable[[str], Apart], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not botocore's alone, which are made first."""
    with Limiter(open_store(url_of(secure("localhost"))), [HINT]) as limiter:
        pool = limiter.store.inner._pool  # type: ignore[attr-defined]
        pool.end_idle()
        pool._endpoint = pool._endpoint._replace(tls=ssl.create_default_context())
        assert limiter.check("alice", "hint").reason == "unavailable"
        assert limiter.store.inner.stats.dropped["unreachable"]  # type: ignore[attr-defined]


class ThreadIssuer:
    """Stands for STS or the metadata service: slow, and out of order on demand."""

    def __init__(self) -> None:
        self.asked = 0
        self.may_answer = threading.Event()
        self.error: Exception | None = None

    def issue(self) -> dict[str, str]:
        self.asked += 1
        assert self.may_answer.wait(60)
        if self.error is not None:
            raise self.error
        expiry = (datetime.now(UTC) + timedelta(hours=6)).isoformat()
        return {"access_key": f"AK{self.asked}", "secret_key": "s", "token": "t", "expiry_time": expiry}


class Wallet:
    """Credentials that are good for so long, as many threads ask for them."""

    def __init__(self, issuer: ThreadIssuer, left: timedelta) -> None:
        self.runner = Runner()
        credentials = RefreshableCredentials("AK0", "s", "t", datetime.now(UTC) + left, issuer.issue, "test")
        self.cache = ThreadCredentials(credentials, lambda work: self.runner.start(work, "credentials"))

    def key(self, seconds: float = 20) -> str:
        with BlockingDeadline(seconds):
            return self.runner.run(self.cache.secrets(), "nothing").access_key

    def keys(self, number: int = 6) -> set[str]:
        with ThreadPoolExecutor(number) as pool:
            return set(pool.map(lambda _: self.key(), range(number)))


def until(condition: Callable[[], Any]) -> None:
    latest = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < latest
        time.sleep(0.002)


def test_due_ones_are_refreshed_once_and_hold_up_nobody() -> None:
    issuer = ThreadIssuer()
    issuer.may_answer.set()
    wallet = Wallet(issuer, timedelta(hours=1))
    assert wallet.keys() == {"AK0"}
    issuer.may_answer.clear()
    wallet.cache._credentials._expiry_time = datetime.now(UTC) + timedelta(minutes=5)
    assert wallet.keys() == {"AK0"}
    issuer.may_answer.set()
    until(lambda: not wallet.cache.is_refreshing)
    assert wallet.keys() == {"AK1"}
    assert issuer.asked == 1


def test_expired_ones_are_waited_for_as_long_as_there_is_time() -> None:
    issuer = ThreadIssuer()
    wallet = Wallet(issuer, timedelta(minutes=-5))
    with suppress(TimeoutError):
        wallet.key(0.05)
    issuer.may_answer.set()
    assert wallet.keys() == {"AK1"}
    assert issuer.asked == 1, "the refresh went on where the first one gave up"


def test_a_refresh_that_fails_is_told_of() -> None:
    issuer = ThreadIssuer()
    issuer.may_answer.set()
    issuer.error = CredentialRetrievalError(provider="test", error_msg="it is closed")
    with pytest.raises(CredentialRetrievalError, match="it is closed"):
        Wallet(issuer, timedelta(minutes=-5)).key()


# A process that is frozen between its calls, as a function on AWS Lambda is, and thawed when its connections died.


HANDLER = """
import sys
from ratelimit import Policy
from ratelimit.sync import Limiter, UsageLog, open_store

store = open_store(sys.argv[1])
limiter, usage = Limiter(store, [Policy("hint", "100/day")], deadline=30), UsageLog(store)

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
