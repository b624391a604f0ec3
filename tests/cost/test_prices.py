from __future__ import annotations

from fractions import Fraction
from importlib.resources import files
from pathlib import Path

import pytest

from ratelimit.cost import load_prices
from ratelimit.errors import ConfigError

OURS = (files("ratelimit.cost") / "prices.toml").read_text(encoding="utf-8")


def test_the_prices_that_come_along_are_dated() -> None:
    prices = load_prices()
    assert (prices.region, prices.as_of.year >= 2026) == ("us-east-1", True)
    assert (prices.write_million, prices.read_million) == (Fraction(5, 8), Fraction(1, 8))


@pytest.mark.parametrize("region", ["us-east-1", "eu-west-1", "eu-central-1"])
def test_every_region_is_complete(region: str) -> None:
    assert load_prices(region).write_hour > 0


def test_ones_own_file(tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(OURS.replace("[regions.us-east-1]", "[regions.here]").replace("= 0.625", "= 2"))
    assert load_prices("here", file).write_million == 2


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ("write_hour = 0.00065 ", "", "us-east-1.write_hour: is missing"),
        ("write_hour", "write_our", "us-east-1.write_hour: is missing"),
        ("read_hour = 0.00013", "read_hour = 0.00013\nx = 1", "us-east-1.x: is unknown"),
        ("= 0.00013", "= -1", "must be a number of dollars"),
        ("= 0.00013", '= "dear"', "must be a number of dollars"),
        ("= 0.00013", "= nan", "must be a number of dollars"),
        ("as_of = 2026-11-01", "", "the file needs `as_of`"),
        ("as_of", "[[", "is no TOML"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, before: str, after: str, problem: str) -> None:
    assert before in OURS
    file = tmp_path / "prices.toml"
    file.write_text(OURS.replace(before, after, 1))
    with pytest.raises(ConfigError, match=problem):
        load_prices(path=file)


def test_a_region_without_prices_and_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no prices for 'mars-1' \\(eu-central-1, eu-west-1, us-east-1\\)"):
        load_prices("mars-1")
    with pytest.raises(ConfigError, match="cannot read"):
        load_prices(path=tmp_path / "nothing")
