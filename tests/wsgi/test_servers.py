"""Behind real servers that fork their workers after the app was made: five pass, the sixth is refused, by whomever."""

from __future__ import annotations

import sys
import time
from itertools import count
from pathlib import Path
from uuid import uuid4

import pytest

from ratelimit.testing.engines import free_port
from tests.engines import Engine
from tests.wsgi.servers import ask, serving

GUNICORN = ("-m", "gunicorn", "site_of_a_test:app", "--workers=3", "--bind=127.0.0.1:PORT")


@pytest.mark.process
@pytest.mark.skipif(not hasattr(sys, "getdlopenflags"), reason="Windows does not fork")
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["pre_fork.py", "PORT"], id="wsgiref, forked"),
        pytest.param([*GUNICORN, "--worker-class=sync", "--preload"], id="gunicorn sync", marks=pytest.mark.slow),
        pytest.param(
            [*GUNICORN, "--worker-class=gthread", "--threads=4", "--preload"],
            id="gunicorn gthread",
            marks=pytest.mark.slow,
        ),
        pytest.param([*GUNICORN, "--worker-class=gevent"], id="gunicorn gevent", marks=pytest.mark.slow),
    ],
)
def test_five_pass_and_the_sixth_is_refused_across_workers(command: list[str], engine: Engine, tmp_path: Path) -> None:
    port = free_port()
    store = engine.store_url(f"wsgi-{uuid4().hex[:8]}", create="true")
    with serving(tmp_path, store, [part.replace("PORT", str(port)) for part in command], port):
        workers, until = set(), time.monotonic() + 120
        for number in count():
            answers = [ask(port, f"user-{number}") for _ in range(6)]
            assert [status for status, _, _ in answers] == [200] * 5 + [429]
            assert [fields.partition(";t=")[0] for _, _, fields in answers if fields] == [
                f'"hint";r={left}' for left in (4, 3, 2, 1, 0, 0)
            ]
            workers |= {worker for _, worker, _ in answers if worker}
            if (len(workers) > 1 and number > 2) or time.monotonic() > until:
                break
        assert len(workers) > 1
