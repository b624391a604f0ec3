from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit.cost import Workload, amount, in_short, number, replicated, share, units_of
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
