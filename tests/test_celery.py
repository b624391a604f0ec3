"""Celery's tasks, limited as `docs/sync.md` says: by a worker in this process, and by workers that fork."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery.contrib.testing.worker import start_worker
from celery.signals import setup_logging

from tests.docs.pages import run, titled
from tests.engines import Engine

pytestmark = pytest.mark.filterwarnings("default")  # of kombu's, about what it finds of Python's


@setup_logging.connect  # type: ignore[untyped-decorator]
def leave_logging_alone(**options: object) -> None:
    """A worker would raise the root logger's level for all tests that follow in this process."""


def shown(**changes: str) -> Any:
    text = titled("docs/sync.md", "celery_tasks.py").text
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text


def made(name: str, **changes: str) -> dict[str, Any]:
    """The block, with a task of this name: Celery has all apps of a process know all tasks."""
    return asyncio.run(run(shown(send_mail=name, **changes)))


@pytest.mark.heavy
def test_a_task_that_is_refused_is_done_when_there_is_room_and_holds_up_nobody() -> None:
    done: list[int] = []
    names = made("send_soon", **{"2/minute": "2/second", 'return f"{text} to {user_id}"': "return done(user_id, text)"})

    def done_by(user_id: int, text: str) -> str:
        done.append(user_id)
        return text

    names["done"] = done_by
    app, task = names["app"], names["send_soon"]
    app.conf.broker_transport_options = {"polling_interval": 0.01}
    with start_worker(app, pool="solo", perform_ping_check=False, loglevel="error", shutdown_timeout=30):
        began = time.monotonic()
        sent = [task.delay(42, str(number)) for number in range(5)] + [task.delay(43, "hello")]
        texts = [one.get(timeout=30, interval=0.01) for one in sent]
    assert texts == ["0", "1", "2", "3", "4", "hello"]
    assert time.monotonic() - began > 1, "five do not fit into one second, wherever it begins"
    assert done.index(43) < 5


def test_what_could_never_pass_fails_at_once() -> None:
    task = made("send_never", **{"2/minute": "0/minute"})["send_never"]
    refused = task.apply((42, "hello"))
    assert (refused.state, refused.result.decision.policy) == ("FAILURE", "mail")


PRODUCER = """
from celery_tasks import send_mail
sent = [send_mail.delay(42, f"{number}") for number in range(8)]
print([one.get(timeout=240, interval=0.02) for one in sent])
"""


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not fork")
def test_workers_that_fork_count_together_on_the_table(engine: Engine, tmp_path: Path) -> None:
    store = engine.store_url(f"celery-{uuid4().hex[:8]}", create="true")
    folders = {"data_folder_in": str(tmp_path), "data_folder_out": str(tmp_path), "polling_interval": 0.02}
    text = shown(
        **{
            'broker="memory://", backend="cache+memory://"': f'broker="filesystem://", backend="file://{tmp_path}"',
            'open_store("memory://")': f"open_store({store!r})",
            '[Policy("mail", quotas="2/minute")],': '[Policy("mail", quotas="5/day")], deadline=30,',
            "raise self.retry(exc=error, countdown=wait)": 'return f"refused in {os.getpid()}"',
            'return f"{text} to {user_id}"': 'return f"sent in {os.getpid()}"',
            "from celery import Celery": "import os\n\nfrom celery import Celery",
            "@limited(": f"app.conf.broker_transport_options = {folders!r}\n\n\n@limited(",
        }
    )
    (tmp_path / "celery_tasks.py").write_text(text)
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[1]}"}
    command = [sys.executable, "-m", "celery", "-A", "celery_tasks", "worker", "--concurrency=2", "--loglevel=warning"]
    with (tmp_path / "log").open("wb") as log:
        worker = subprocess.Popen(
            [*command, "--without-gossip", "--without-mingle"], cwd=tmp_path, env=env, stdout=log, stderr=log
        )
    try:
        done = subprocess.run(
            [sys.executable, "-c", PRODUCER], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=270
        )
        assert done.returncode == 0, done.stderr + (tmp_path / "log").read_text()
        answers = [answer.split(" in ") for answer in done.stdout.strip("[]\n ").replace("'", "").split(", ")]
    finally:
        worker.terminate()
        worker.wait(120)
    assert sorted(what for what, _ in answers) == ["refused"] * 3 + ["sent"] * 5
    assert str(worker.pid) not in {pid for _, pid in answers}
