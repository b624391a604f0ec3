"""What a simulation must show whatever the mode: never over, and with leases a hot item that keeps up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from loadtest.simulate.__main__ import app
from loadtest.simulate.simulation import Case, Mode, Result, simulate
from ratelimit.errors import ConfigError

pytestmark = pytest.mark.slow

MODES = ["plain", "coalesced", "lease=20", "lease=auto"]
SMALL = Case(processes=20, rate=2000, seconds=1.5, limit="2000/day")
HOT = Case(processes=200, rate=20_000, seconds=4, ramp=1, limit="1000000/day")


def of(case: Case, mode: str) -> Result:
    return simulate(case, Mode.parse(mode))


@pytest.mark.parametrize("mode", MODES)
def test_never_over_and_all_held_comes_back(mode: str) -> None:
    result = of(SMALL, mode)
    assert result.checks > 2500
    assert result.over_admission == 0
    assert result.lost == 0


@pytest.mark.parametrize("mode", MODES)
def test_never_over_where_windows_end(mode: str) -> None:
    assert of(replace(SMALL, limit="700/second"), mode).over_admission == 0


def test_never_over_on_many_keys() -> None:
    case = Case(processes=10, rate=3000, seconds=1, limit="20/day", keys="zipf")
    for mode in MODES:
        assert of(case, mode).over_admission == 0


@pytest.mark.parametrize("mode", MODES)
def test_the_same_seed_gives_the_same_figures(mode: str) -> None:
    first, again = (msgspec.structs.replace(of(SMALL, mode), wall_seconds=0) for _ in range(2))
    assert first == again
    other = msgspec.structs.replace(of(replace(SMALL, seed=2), mode), wall_seconds=0)
    assert other != first


def test_a_lease_crosses_to_the_home_once_for_all_of_its_units() -> None:
    """Three of four processes are in another region than the user, and none of them asks for each check."""
    case = replace(SMALL, regions=4, crossing_ms=80, limit="100000/day", rate=500, seconds=3)
    each, leased = (of(case, mode) for mode in ("plain", "lease=49"))
    for result in (each, leased):
        assert result.over_admission == 0
        assert result.unavailable == 0
    assert 0.7 < each.crossings / each.checks < 0.8
    assert each.p50 > 80
    assert leased.crossings / leased.checks < 0.03
    assert leased.p50 < 1
    assert of(SMALL, "lease=49").crossings == 0


def test_auto_leases_keep_a_hot_item_under_its_capacity() -> None:
    """200 processes, 100 checks a second each: coalescing alone would write some 15,000 times a second."""
    result = of(HOT, "lease=auto")
    assert result.over_admission == 0
    # The first second is every process's first writes, all at once; then what `auto` aims at, 500, with some margin.
    assert max(result.attempted[2:]) < 750
    assert result.units_per_check < 0.04
    assert result.unavailable < 0.02


def test_a_busy_key_is_not_written_for_every_check_that_came_while_it_was() -> None:
    """1,000 checks a second in each process: while one write is under way, the next check is always there."""
    result = of(Case(processes=10, rate=10_000, seconds=2, limit="1000000/day"), "lease=1000")
    assert max(result.attempted) <= 20


def test_plain_is_throttled_where_leases_are_not() -> None:
    case = Case(processes=50, rate=5000, seconds=1, limit="5000/day")
    assert of(case, "plain").throttles > 1000
    assert of(case, "lease=100").throttles == 0


@pytest.mark.parametrize("text", ["", "lease", "lease=0", "lease=-1", "fast"])
def test_an_unknown_mode_says_which_there_are(text: str) -> None:
    with pytest.raises(ConfigError, match="use plain, coalesced, lease=50 or lease=auto"):
        Mode.parse(text)


@pytest.mark.parametrize(
    "change", [{"processes": 0}, {"rate": 0}, {"seconds": -1}, {"ramp": 9}, {"keys": "warm"}, {"regions": 21}]
)
def test_a_case_names_what_is_wrong(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        replace(SMALL, **change)  # type: ignore[arg-type]


def test_the_command_prints_a_table_and_keeps_the_figures(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    options = "--processes 5 --rate 500 --seconds 1 --modes coalesced,lease=auto --json"
    done = CliRunner().invoke(app, [*options.split(), str(figures)])
    assert done.exit_code == 0, done.output
    assert "lease=auto" in done.output
    kept = json.loads(figures.read_bytes())
    assert [result["mode"] for result in kept["results"]] == ["coalesced", "lease=auto"]
    assert kept["case"]["limit"] == "400/day"


def test_the_command_refuses_nonsense() -> None:
    done = CliRunner().invoke(app, ["--modes", "fast"])
    assert done.exit_code == 2
    assert "unknown mode 'fast'" in done.output
