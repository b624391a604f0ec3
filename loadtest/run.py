"""`run`: one load test. Everything that it starts is stopped when it leaves, however it leaves."""

from __future__ import annotations

import os
import platform
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from ratelimit.cli.output import say, say_table
from ratelimit.cli.progress import shown
from ratelimit.config.secrets import masked

from .figures import SampleTally, figures, quantiles
from .generate import check_port, generate
from .load.schedule import user_prefix
from .options import Options, judge, read_budgets
from .page import write
from .plan import Group, LoadPlan, SampleBatch, Trouble
from .result import FORMAT, GroupResult, Report
from .servers import BOOKS_WITHIN, place, servers

_WINDOW: Final = 5_000


def _how_it_goes(tally: SampleTally, at: float) -> str:
    """In a line; the latencies are those of the latest few seconds."""
    latest = tally.samples[-_WINDOW:]
    if not latest:
        return "warming up"
    failed = sum(sample.outcome == "failed" for sample in tally.samples)
    found = quantiles([sample.latency for sample in latest if sample.outcome != "failed"])
    times = f"p50 {found.p50:.2f}  p99 {found.p99:.2f} ms" if found else "no answers"
    rate = len(tally.samples) / at if at else 0.0
    return f"{at:.0f} of {tally.plan.duration:.0f} s  {rate:.1f}/s of {tally.plan.rate:g}  {times}  {failed} errors"


# The environment of a run, for whoever reads its figures later.

_PACKAGES: Final = ("ratelimit-dynamodb", "locust", "uvicorn", "uvloop", "aiobotocore", "starlette", "ministack")


def environment(options: Options) -> dict[str, str]:
    """By name, in the order to be shown."""
    return {
        "counted in": options.place if options.store is None else masked(options.store),
        "machine": f"{os.cpu_count()} cores, {_processor()}",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": ", ".join(f"{name} {found}" for name in _PACKAGES if (found := _version(name))),
        "load when it began": load(),
        "rate": f"{options.paced:g} requests a second, {options.users} users, {options.duration:g} s after "
        f"{options.warm_up:g} s of warming up",
        "generators": _generators(options),
        "seed": str(options.seed),
    }


def load() -> str:
    """The load average of the last minute: other programs were at work where it is high."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def _generators(options: Options) -> str:
    if options.expect_workers:
        return f"{options.expect_workers} workers of Locust, started by hand"
    return "1 process of Locust" if options.processes == 1 else f"{options.processes} processes of Locust"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


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
        format=FORMAT, run=name, place=options.place, command=shlex.join(["ratelimit", *sys.argv[1:]]),
        date=datetime.now(UTC).isoformat(timespec="seconds"), complete=complete, environment=facts, groups=results,
        verdicts=judge(budgets, results), notes=_notes(results, complete=complete),
    )  # fmt: skip
    if results:
        write(report, options.report)
    return report


def _run_group(group: Group, name: str, url: str, options: Options, scratch: Path) -> GroupResult:
    _say(f"{group}: starting its servers")
    with servers(group, url, options.host) as running:
        plan = LoadPlan(
            run=f"{name}{group[0]}", group=group, rate=options.paced, users=options.users, duration=options.duration,
            warm_up=options.warm_up, workers=options.expect_workers or options.processes, seed=options.seed,
            targets={server: program.first for server, program in running.items()},
        )  # fmt: skip
        tally = SampleTally(plan)
        html = options.report / f"locust-{group}.html"
        with shown() as show:

            def tell(worker: str, batch: SampleBatch) -> None:
                tally.add(worker, batch)
                at = max((sample.at for sample in tally.samples[-100:]), default=0) / 1e6
                show(group, _how_it_goes(tally, at), round(at), round(plan.duration))

            complete = generate(plan, options, html, scratch / f"{group}-locust.log", tell)
        _say(f"{group}: comparing the books")
        told = [program.ask(user_prefix(plan.run), within_s=BOOKS_WITHIN) for program in running.values()]
        return figures(tally, [book for book in told if book], complete=complete)


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


# A run's last words in the terminal: the budgets, what was measured, where the report is, and the exit status.

HOLD: Final = 0
BROKEN: Final = 1


def conclude(options: Options) -> int:
    """Run, say what came of it, and return the exit status. Raises `Trouble`."""
    report = run(options)
    if not report.groups:
        raise Trouble("interrupted before anything was measured; there is no report", status=INTERRUPTED)
    for group in report.groups:
        say_table(("", "requests", "errors", "p50 ms", "p99 ms", "added p50", "added p99"), _rows(group))
    say_table(
        ("budget", "measured", "at most", "", ""),
        [
            (v.budget, f"{v.measured:g}", f"{v.at_most:g}", v.unit, "holds" if v.holds else "BROKEN")
            for v in report.verdicts
        ],
    )
    for note in report.notes:
        say(note, style="yellow")
    for group in report.groups:
        for difference in group.exactness.differences:
            say(f"{group.group}: {difference}", style="red")
    say(_verdict(report, options.report), style="bold green" if report.holds and report.complete else "bold red")
    if not report.complete:
        return INTERRUPTED
    return HOLD if report.holds else BROKEN


def _rows(group: GroupResult) -> list[tuple[str, ...]]:
    added = {each.series: each for each in group.added}
    rows: list[tuple[str, ...]] = []
    for series in group.series:
        latency, more = series.latency, added.get(series.name)
        rows.append(
            (
                f"{group.group}: {series.name}", f"{series.count:,}", f"{series.failed:,}",
                f"{latency.p50:.2f}" if latency else "", f"{latency.p99:.2f}" if latency else "",
                f"{more.p50.value:+.2f}" if more else "", f"{more.p99.value:+.2f}" if more else "",
            )
        )  # fmt: skip
    return rows


def _verdict(report: Report, folder: Path) -> str:
    where = (folder / "index.html").resolve()
    if not report.complete:
        return f"PARTIAL, cut short: {where}"
    if report.holds:
        return f"every budget holds: {where}"
    broken = sum(not verdict.holds for verdict in report.verdicts)
    return f"{broken} of {len(report.verdicts)} budgets BROKEN: {where}"
