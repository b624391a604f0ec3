"""The file for Locust. By itself it asks an app of your own, with Locust's web page or without:

    locust -f loadtest/load/locustfile.py --host http://127.0.0.1:8000 --request 'POST /hints' --user-header x-api-key

`ratelimit loadtest run` gives it a plan (`--plan JSON PacedUser`) and keeps to that. A worker on another machine needs
no plan: its master sends it. Where there is no master above, every batch of samples goes to standard output, as a line
that begins with `@`.
"""

from __future__ import annotations

import sys
from typing import Any, Final

import gevent
import msgspec
from locust import events
from locust.env import Environment
from locust.runners import LocalRunner, WorkerRunner

from ratelimit.loadtest.load.users import AppUser, ConstantRate, LoadSession, PacedUser, has_plan, plan_of
from ratelimit.loadtest.plan import CUT_SHORT, SampleBatch

__all__ = ["AppUser", "ConstantRate", "PacedUser"]

_EVERY: Final = 0.5
_KEY: Final = "ratelimit"


@events.init_command_line_parser.add_listener
def _options(parser: Any) -> None:
    parser.add_argument(
        "--plan", default="", help="The plan as JSON; a worker is sent its master's.", include_in_web_ui=False
    )
    AppUser.add_options(parser)


@events.init.add_listener
def _prepare(environment: Environment, **_: object) -> None:
    """Without a plan there is no schedule to keep to: as many users as Locust is told, and no shape."""
    if isinstance(environment.runner, WorkerRunner):
        return
    if has_plan(environment):
        gevent.signal_handler(CUT_SHORT, ConstantRate.end)
    else:
        environment.user_classes = [AppUser]
        environment.shape_class = None


@events.test_start.add_listener
def _begin(environment: Environment, **_: object) -> None:
    """On whoever makes requests: a worker, or Locust alone."""
    if not has_plan(environment):
        return
    runner = environment.runner
    index = runner.worker_index if isinstance(runner, WorkerRunner) else 0
    PacedUser.session = LoadSession(environment, plan_of(environment), index)
    if isinstance(runner, LocalRunner):
        gevent.spawn(_tell_again_and_again)


@events.test_stopping.add_listener
def _send_no_more(environment: Environment, **_: object) -> None:
    if hasattr(PacedUser, "session"):
        PacedUser.session.over = True


@events.quitting.add_listener
def _end(environment: Environment, **_: object) -> None:
    runner = environment.runner
    if isinstance(runner, LocalRunner) and hasattr(PacedUser, "session"):
        runner.quit()
        _tell(PacedUser.session.batch(), "")


@events.report_to_master.add_listener
def _from_worker(client_id: str, data: dict[str, Any]) -> None:
    if hasattr(PacedUser, "session"):
        data[_KEY] = list(PacedUser.session.batch())


@events.worker_report.add_listener
def _to_master(client_id: str, data: dict[str, Any]) -> None:
    if _KEY in data:
        _tell(SampleBatch(*data[_KEY]), client_id)


def _tell_again_and_again() -> None:
    while True:
        gevent.sleep(_EVERY)
        _tell(PacedUser.session.batch(), "")


def _tell(batch: SampleBatch, worker: str) -> None:
    sys.stdout.write(f"@{msgspec.json.encode((worker, batch)).decode()}\n")
    sys.stdout.flush()
