"""A limiter that was made, opened and used before a fork works in the child, and the parent's goes on undisturbed."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading

import pytest

from ratelimit import MemoryStore, Policy
from ratelimit.sync import Limiter, open_store
from ratelimit.sync.store import store_from
from ratelimit.testing import FakeClock
from tests.faults.apart import Apart
from tests.sync.forks import forked

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows does not fork")

HINT = Policy("hint", "100/day", on_unavailable="deny")


@pytest.mark.parametrize("fast", ["on", "off"])
@pytest.mark.parametrize("used", [False, True], ids=["made", "used"])
def test_a_forked_worker_has_connections_of_its_own(
    apart: Apart, url: str, clock: FakeClock, used: bool, fast: str
) -> None:
    limiter = Limiter(store_from(f"{url}&fast={fast}"), [HINT], clock=clock)
    if used:
        assert limiter.check("alice", "hint").used == 1
    before = limiter.check("alice", "hint").used
    assert forked(lambda: [limiter.check("alice", "hint").used for _ in range(3)] == [before + n for n in (1, 2, 3)])
    connections = limiter.store.inner.stats.connections  # type: ignore[attr-defined]
    assert limiter.check("alice", "hint").used == before + 4
    assert limiter.store.inner.stats.connections == connections  # type: ignore[attr-defined]
    limiter.close()


def test_what_is_held_is_left_to_the_parent() -> None:
    """A child that leaves the blocks which its parent is in gives nothing back, and says nothing of it."""
    limiter = Limiter(open_store("memory://"), [Policy("export", "2 concurrent"), HINT], clock=FakeClock())
    slot, reservation = limiter.slot("alice", "export"), limiter.reserve("alice", "hint", 10)
    slot.take()
    reservation.take()

    def leave() -> bool:
        reservation.settle(3)
        reservation.__exit__(None, None, None)
        slot.__exit__(None, None, None)
        return (limiter.peek("alice", "export").remaining, limiter.peek("alice", "hint").used) == (1, 10)

    assert forked(leave)
    slot.release()
    reservation.release()
    assert (limiter.peek("alice", "export").remaining, limiter.peek("alice", "hint").used) == (2, 0)


@pytest.mark.heavy
def test_a_fork_while_other_threads_are_in_the_middle_of_checks(url: str, clock: FakeClock) -> None:
    """What they hold is held for ever in a child where they do not exist."""
    limiter, done = Limiter(open_store(url), [HINT], clock=clock), threading.Event()

    def check() -> None:
        while not done.is_set():
            limiter.check(f"user-{threading.get_ident()}", "hint")

    threads = [threading.Thread(target=check) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        assert all(forked(lambda: limiter.check("bob", "hint").reason is None) for _ in range(10))
    finally:
        done.set()
        for thread in threads:
            thread.join(20)
    assert limiter.check("bob", "hint").used == 11
    limiter.close()


def test_what_is_counted_in_memory_is_not_shared_and_that_is_said(
    clock: FakeClock, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    limiter = Limiter(MemoryStore(), [HINT], clock=clock)
    limiter.check("alice", "hint")

    def count() -> bool:
        told = "make the limiter after the fork" in caplog.text
        return told and limiter.check("alice", "hint").used == 2

    with caplog.at_level(logging.WARNING):
        assert forked(count)
    assert limiter.check("alice", "hint").used == 2


@pytest.mark.process
def test_multiprocessing_forks_and_spawns(url: str) -> None:
    program = """
import multiprocessing, sys
from ratelimit import Policy
from ratelimit.sync import Limiter, open_store

def work(url):
    global limiter
    if "limiter" not in globals():
        limiter = Limiter(open_store(url), [Policy("hint", "100/day")], deadline=30)
    return limiter.check("alice", "hint").reason

if __name__ == "__main__":
    limiter = Limiter(open_store(sys.argv[1]), [Policy("hint", "100/day")], deadline=30)
    limiter.check("alice", "hint")
    with multiprocessing.get_context("fork").Pool(3) as pool:
        print(set(pool.map(work, [sys.argv[1]] * 20)))
    limiter.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, url], capture_output=True, text=True, timeout=240, check=False
    )
    assert (done.stdout, done.stderr) == ("{None}\n", "")


@pytest.mark.process
@pytest.mark.parametrize("work", ["limiter.check", "usage.record"])
def test_a_fork_while_a_thread_of_ours_imports_aws_client(url: str, work: str) -> None:
    """In the child, which does not have that thread, the import of the same would wait for its end for ever."""
    program = f"""
import multiprocessing, sys, threading, time
from ratelimit import Policy
from ratelimit.blocking import importing
from ratelimit.sync import Limiter, UsageLog
from ratelimit.sync.store import store_from

imports = threading.Event()

class Slow:
    def find_spec(self, name, *_):
        if threading.current_thread() is threading.main_thread():
            return
        if not importing._is_owned():
            print(name, "is imported while a fork may happen")
        if not imports.is_set():
            imports.set()
            time.sleep(0.5)

store = store_from(sys.argv[1] + "&fast=off")
limiter, usage = Limiter(store, [Policy("hint", "100/day")], deadline=30), UsageLog(store)

def work():
    {work}("alice", "hint")
    usage.flush()

sys.meta_path.insert(0, Slow())
working = threading.Thread(target=work)
working.start()
imports.wait(60)
child = multiprocessing.get_context("fork").Process(target=work)
child.start()
child.join(60)
print(child.exitcode)
child.kill()
working.join()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, url], capture_output=True, text=True, timeout=240, check=False
    )
    assert (done.stdout, done.stderr) == ("0\n", "")
