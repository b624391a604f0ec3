from __future__ import annotations

from fractions import Fraction
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit.cost.estimate import load_prices
from ratelimit.cost.units import Workload, amount, in_short, number, replicated, share, units_of
from ratelimit.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("1500", 1500),
        ("1_500", 1500),
        ("1,500,000", 1_500_000),
        ("1.5k", 1500),
        ("50M", 50_000_000),
        ("50 m", 50_000_000),
        (".5M", 500_000),
        ("2G", 2_000_000_000),
        ("2b", 2_000_000_000),
    ],
)
def test_amounts(text: str, value: int) -> None:
    assert amount("--checks", text) == value


@pytest.mark.parametrize(
    "text", ["", "x", "5X", "-5", "5%", "M", "1e6", "1_5", "nan", "\u0665", "1.5", "0.0001k", "9999999G"]
)
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--checks: "):
        amount("--checks", text)


@given(st.integers(min_value=0, max_value=10**12))
def test_an_amount_in_thousands_is_exact(thousands: int) -> None:
    assert amount("n", f"{thousands}k") == thousands * 1000 == amount("n", str(thousands * 1000))


@pytest.mark.parametrize(
    ("text", "value"),
    [("20%", Fraction(1, 5)), ("0.2", Fraction(1, 5)), ("100%", 1), ("1", 1), ("0", 0), (".1%", Fraction(1, 1000))],
)
def test_shares(text: str, value: Fraction) -> None:
    assert share("--denied", text) == value


@pytest.mark.parametrize("text", ["", "x", "-1%", "101%", "1.5", "20", "%", "nan"])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--denied: "):
        share("--denied", text)


def test_a_share_without_its_sign_gets_a_hint() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 20%\?"):
        share("--denied", "20")


@pytest.mark.parametrize("text", ["", "x", "-1", "nan", "inf", "1k", "2."])
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--vcpu: "):
        number("--vcpu", text)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (12, "12"), (1500, "1.5k"), (50_000_000, "50M"), (999_600, "1,000k"), (10**12, "1,000G")],
)
def test_in_short(value: int, text: str) -> None:
    assert in_short(value) == text


def test_replicas_are_billed_for_what_is_written_and_not_for_what_is_refused() -> None:
    one = units_of(Workload(checks=1_000_000, denied=Fraction(1, 5), users=1000, log="all", timeline=Fraction(1, 2)))
    three = replicated(one, 3)
    for name in ("checks", "events", "timelines", "state_gb", "event_gb"):
        assert getattr(three, name) == 3 * getattr(one, name) > 0
    assert (three.refused, three.reads) == (one.refused, one.reads)
    assert three.spared["denial cache"] == one.spared["denial cache"] > 0
    assert replicated(one, 1) == one


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
