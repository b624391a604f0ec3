"""From samples to figures, verdicts and comparisons."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from random import Random

import pytest

from loadtest.figures import SampleTally, compare_books, difference, figures, quantile, quantiles
from loadtest.options import ENGINES, Budgets, Options, judge, read_budgets
from loadtest.plan import SERIES, RequestSample, SampleBatch, Trouble
from loadtest.result import read_report
from tests.cli.command import Command
from tests.cli.command import ratelimit as ratelimit
from tests.loadtest.results import book, encoded, plan, report, result


def test_quantiles_are_latencies_that_were_measured() -> None:
    found = quantiles(list(range(1_000, 101_000, 1_000)))
    assert found is not None
    assert (found.p50, found.p90, found.p99, found.p999, found.most) == (50, 90, 99, 100, 100)
    assert quantiles([]) is None
    assert quantile([7], 0.99) == 7


def test_a_difference_is_found_and_bounded() -> None:
    random = Random(1)
    old = [[round(random.gauss(2_000, 100)) for _ in range(100)] for _ in range(20)]
    new = [[latency + 500 for latency in second] for second in old]
    found = difference(new, old, 0.5, paired=True)
    assert found is not None
    assert found.low <= found.value <= found.high
    assert found.value == pytest.approx(0.5, abs=0.01)
    assert found.is_clear
    same = difference(old, [list(reversed(second)) for second in reversed(old)], 0.5, paired=False)
    assert same is not None
    assert not same.is_clear


def test_a_pause_of_a_second_is_noise() -> None:
    """Two hundred slow requests, but all of one second: that says nothing about the change."""
    calm = [[2_000 + n for n in range(200)] for _ in range(10)]
    paused = [*calm[:-1], [90_000] * 200]
    found = difference(paused, calm, 0.99, paired=False)
    assert found is not None
    assert found.value > 80
    assert not found.is_clear


def test_nothing_can_be_compared_with_nothing() -> None:
    assert difference([[], []], [[1], [2]], 0.5, paired=True) is None


def test_a_group_in_figures() -> None:
    found = result()
    assert found.pace.kept
    assert found.pace.sent == pytest.approx(200, rel=0.01)
    assert [series.count for series in found.series] == [1000, 1000]
    (added,) = found.added
    assert added.p50.value == pytest.approx(0.5, abs=0.1)
    assert added.p50.is_clear
    assert sum(found.answered) == pytest.approx(2000, abs=2)  # the answers of the last moment come after the end
    assert [meter.per_check for meter in found.meters] == [1.0]


def test_a_rate_that_was_not_kept_shows() -> None:
    found = result(wait=3_000_000)
    assert not found.pace.kept
    assert found.pace.sent == pytest.approx(140, rel=0.02)  # those of the last three seconds went out after the end
    assert found.pace.waited_p99 == 3_000
    assert found.series[0].latency is not None
    assert found.series[0].latency.p50 > 3_000  # the waiting is part of it


def test_a_short_run_at_a_low_rate_keeps_to_its_budgets() -> None:
    """Nearly every user is new, each first check took a second write, and the last request just missed the end."""
    slow = plan("checks", rate=3.0, duration=5.0)
    tally = SampleTally(slow)
    rows = [
        list(RequestSample(number % 7, f"lt-r1-{number}", round(number / slow.rate * 1e6), 0, 5, 900, 900, "allowed"))
        for number in range(14)
    ]
    tally.add("", SampleBatch(rows, 0))
    doubled = {name: {"writes": 2 * count, "units": 2.0 * count} for name, count in tally.checks.items()}
    found = figures(tally, [book(tally, meters=doubled)], complete=True)
    assert all(verdict.holds for verdict in judge(read_budgets(Options(engine="ministack")), [found]))
    tripled = {name: {"writes": 3 * count, "units": 3.0 * count} for name, count in tally.checks.items()}
    found = figures(tally, [book(tally, meters=tripled)], complete=True)
    assert not all(verdict.holds for verdict in judge(read_budgets(Options(engine="ministack")), [found]))


def _tally(*outcomes: str) -> SampleTally:
    tally = SampleTally(plan())
    rows = [list(RequestSample(1, "lt-r1-1-0", -5, 0, 0, 9, 9, outcome)) for outcome in outcomes]  # type: ignore[arg-type]
    tally.add("", SampleBatch(rows, 0))
    return tally


@pytest.mark.parametrize(
    ("counted", "logged", "holds"),
    [(3, 3, True), (4, 4, True), (3, 4, True), (2, 3, False), (5, 3, False), (3, 2, False)],
)
def test_books_differ_by_no_more_than_what_is_not_known(counted: int, logged: int, *, holds: bool) -> None:
    tally = _tally("allowed", "allowed", "allowed", "refused", "failed")
    user = "lt-r1-1-0"
    found = compare_books(tally, [book(tally, totals={"hello": {user: counted}}, events={"hello": {user: logged}})])
    assert found.holds is holds
    assert (found.admitted, found.unknown) == (3, 1)


def test_books_of_someone_nobody_asked_for_differ() -> None:
    tally = _tally("allowed")
    good = book(tally)
    assert compare_books(tally, [good]).holds
    stray = {"hello": {"lt-r1-1-0": 1, "lt-r1-1-9": 1}}
    found = compare_books(tally, [{**good, "totals": stray}])
    assert found.differences == ["lt-r1-1-9 hello: admitted 0, counted 1, logged 0"]


def test_warming_up_counts_in_the_books_only() -> None:
    tally = _tally("allowed", "allowed")
    assert tally.samples == []
    assert sum(tally.admitted.values()) == 2


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_has_budgets(engine: str) -> None:
    budgets = read_budgets(Options(engine=engine))
    assert budgets.exact
    assert budgets.added_p50_ms
    assert budgets.rate_off == 0.02
    smoke = read_budgets(Options(engine=engine, smoke=True))
    assert smoke.exact
    assert smoke.error_rate == 0.0
    assert smoke.added_p99_ms["with the middleware"] > budgets.added_p99_ms["with the middleware"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[all]\neror_rate = 0.0\n", "eror_rate"),
        ("[ministak]\n", "unknown section 'ministak'"),
        ("[all]\nerror_rate = 'none'\n", "error_rate"),
        ("[all\n", "budgets.toml"),
    ],
)
def test_a_budget_that_cannot_be_read(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "budgets.toml"
    file.write_text(text)
    with pytest.raises(Trouble, match=told):
        read_budgets(Options(budgets=file))


def test_budgets_are_judged() -> None:
    budgets = Budgets(
        error_rate=0.001, rate_off=0.02, added_p50_ms={"with the middleware": 0.3},
        added_p99_ms={"with the middleware": 50.0}, write_units_per_check={"limited": 1.0},
    )  # fmt: skip
    verdicts = {verdict.budget: verdict.holds for verdict in judge(budgets, [result(failing=10)])}
    assert verdicts == {
        "middleware: keys whose books differ": True,
        "middleware: errors": False,
        "middleware: rate missed by": True,
        "middleware: with the middleware, added p50": False,
        "middleware: with the middleware, added p99": True,
        "middleware: limited, writes": True,
    }


def even(more: int, random: Random, series: int, second: int) -> int:
    """The one series takes `more` than usual."""
    del second
    return 1_000 + series * (500 + more) + random.randrange(300)


def test_nothing_of_a_comparison_is_lost_in_a_narrow_pipe(
    tmp_path: Path, ratelimit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS")
    file = tmp_path / "a.json"
    file.write_bytes(encoded(report(result(plan("checks")))))
    said = ratelimit("loadtest", "compare", str(file), str(file)).out
    assert said.count("no change") == 2 * len(SERIES["checks"])


def test_compare_tells_a_change_from_noise(tmp_path: Path, ratelimit: Command) -> None:
    files = {}
    for name, seed, more in (("a", 1, 0), ("again", 2, 0), ("slower", 3, 400)):
        files[name] = tmp_path / f"{name}.json"
        files[name].write_bytes(encoded(report(result(latency=partial(even, more), seed=seed))))
    same = ratelimit("loadtest", "compare", str(files["a"]), str(files["again"]))
    assert same.status == 0, same.out
    assert "none of 4 figures is slower" in same.out
    worse = ratelimit("loadtest", "compare", str(files["a"]), str(files["slower"]))
    assert worse.status == 1
    assert "2 of 4 figures are slower" in worse.out
    better = ratelimit("loadtest", "compare", str(files["slower"]), str(files["a"]))
    assert better.status == 0
    assert better.out.count("faster") == 2


def test_compare_warns_of_other_places(tmp_path: Path, ratelimit: Command) -> None:
    for name, place in (("a", "ministack"), ("b", "memory")):
        (tmp_path / f"{name}.json").write_bytes(encoded(report(place=place)))
    done = ratelimit("loadtest", "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"))
    assert "caution: the place differs: 'ministack' before, 'memory' after" in done.out


@pytest.mark.parametrize(
    ("content", "told"), [(None, "No such file"), (b"{}", "no report of a load test"), (b"[", "no report")]
)
def test_compare_needs_reports(tmp_path: Path, ratelimit: Command, content: bytes | None, told: str) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_bytes(encoded(report()))
    if content is not None:
        bad.write_bytes(content)
    done = ratelimit("loadtest", "compare", str(good), str(bad))
    assert done.status == 2
    assert told in done.err


def test_a_report_reads_back(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    given = report()
    file.write_bytes(encoded(given))
    assert read_report(file) == given


def test_a_pause_is_not_called_a_regression(tmp_path: Path, ratelimit: Command) -> None:
    def paused(random: Random, series: int, second: int) -> int:
        return 90_000 if second == 9 else even(0, random, series, second)

    for name, latency in (("a", partial(even, 0)), ("b", paused)):
        (tmp_path / f"{name}.json").write_bytes(encoded(report(result(latency=latency))))
    done = ratelimit("loadtest", "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"))
    assert done.status == 0, done.out
    assert "no change" in done.out
