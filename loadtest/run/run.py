"""`run`: one load test. Everything that it starts is stopped when it leaves, however it leaves."""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from loadtest.load.draw import user_prefix
from loadtest.page.write import write
from loadtest.plan import Group, Plan
from loadtest.result import FORMAT, GroupResult, Report
from loadtest.run.budgets import judge, read_budgets
from loadtest.run.figures import figures
from loadtest.run.generate import check_port, generate
from loadtest.run.machine import environment, load
from loadtest.run.options import Options, Trouble
from loadtest.run.place import place
from loadtest.run.progress import Progress
from loadtest.run.servers import servers
from loadtest.run.tally import Tally

INTERRUPTED = 130


def run(options: Options) -> Report:
    """The report, which is also written. Raises `Trouble`."""
    _check(options)
    budgets = read_budgets(options)
    facts = environment(options)
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}{time.time_ns() // 1_000_000 % 1000:03}"
    _clear(options.report)
    results: list[GroupResult] = []
    with _stopped_by_term(), tempfile.TemporaryDirectory(prefix="ratelimit-loadtest-") as scratch:
        try:
            _say(f"starting {options.place}" if options.store is None else "looking at the table")
            with place(options) as url:
                for group in options.groups:
                    results.append(_run_group(group, name, url, options, Path(scratch)))
                    if not results[-1].complete:
                        break
        except KeyboardInterrupt:
            _say("\ninterrupted; everything that was started has been stopped")
    facts["load when it ended"] = load()
    complete = len(results) == len(options.groups) and all(result.complete for result in results)
    report = Report(
        format=FORMAT, run=name, place=options.place, command=options.command,
        date=datetime.now(UTC).isoformat(timespec="seconds"), complete=complete, environment=facts, groups=results,
        verdicts=judge(budgets, results), notes=_notes(results, complete=complete),
    )  # fmt: skip
    if results:
        write(report, options.report)
    return report


def _run_group(group: Group, name: str, url: str, options: Options, scratch: Path) -> GroupResult:
    _say(f"{group}: starting its servers")
    with servers(group, url, options.host, scratch) as running:
        plan = Plan(
            run=f"{name}{group[0]}", group=group, rate=options.paced, users=options.users, duration=options.duration,
            warm_up=options.warm_up, workers=options.expect_workers or options.processes, seed=options.seed,
            targets={server.name: server.address for server in running.values()},
        )  # fmt: skip
        tally = Tally(plan)
        progress = Progress(tally)
        html = options.report / f"locust-{group}.html"
        complete = generate(plan, options, html, scratch / f"{group}-locust.log", progress.tell)
        progress.end()
        _say(f"{group}: comparing the books")
        books = [book for server in running.values() if (book := server.count(user_prefix(plan.run)))]
        return figures(tally, books, complete=complete)


def _check(options: Options) -> None:
    lacking = [module for module in ("locust", "uvicorn", "httptools", "aiohttp") if find_spec(module) is None]
    if lacking:
        raise Trouble(f"{', '.join(lacking)} not installed; pip install 'ratelimit-dynamodb[loadtest]'")
    if options.expect_workers:
        check_port(options.host, options.master_port)


def _clear(folder: Path) -> None:
    """What an earlier run has left there would be taken for this one's. Raises `Trouble`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in (
            *folder.glob("locust-*.html"),
            *(folder / name for name in ("report.json", "figures.csv", "index.html")),
        ):
            old.unlink(missing_ok=True)
    except OSError as error:
        raise Trouble(f"{folder}: {error.strerror or error}") from error


def _notes(results: list[GroupResult], *, complete: bool) -> list[str]:
    notes = [] if complete else ["This run was cut short: the figures are of what there was until then."]
    for result in results:
        pace = result.pace
        if not pace.kept and result.complete:
            late = "the generator itself was late" if pace.lag_p99 > pace.waited_p99 else "all users were waiting"
            notes.append(
                f"{result.group}: the intended rate was not kept, {pace.sent:g} of {pace.asked:g} a second ({late}); "
                f"{pace.unsent} requests were never sent. The latencies include the waiting of the others."
            )
        elif pace.lag_p99 > 10:
            notes.append(
                f"{result.group}: the generator was late by up to {pace.lag_p99:.0f} ms (p99), which is in the "
                "latencies: the machine is too busy for fine differences."
            )
    return notes


@contextmanager
def _stopped_by_term() -> Iterator[None]:
    """Told to end (SIGTERM), it leaves as it does at Ctrl-C."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
