"""How an estimate is shown."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from ratelimit.cli.output import in_words, note, say, say_json, say_table
from ratelimit.cost import Consumption, Estimate, Prices, Provisioned, Units, dollars, in_short


def report(found: Estimate, units: Units, prices: Prices, consumption: Consumption | None, *, as_json: bool) -> None:
    """As text, or as one document."""
    if as_json:
        say_json(_document(found, units, prices, consumption))
        return
    source = "by these numbers" if consumption is None else f"by the last {in_words(consumption.seconds)}"
    say(f"A month in {prices.region}, {source}, prices of {prices.as_of} in US dollars")
    say_table(("what", "how much", "dollars"), [
        *((line.name, line.basis, f"{line.dollars:,}") for line in found.lines),
        ("total", "", f"{found.total:,}"),
    ])  # fmt: skip
    _report_billing(found)
    _report_savings(found)
    if consumption is not None:
        _report_consumption(consumption)
    note("prices are typed in, not fetched, without free tier, taxes and traffic: check before you rely on it")


def _report_billing(found: Estimate) -> None:
    throughput = found.throughput
    say("Writes and reads, by billing")
    say_table(("billing", "units a second", "dollars"), [
        ("on demand", "as they come", f"{dollars(throughput.on_demand):,}"),
        ("provisioned, auto scaled", _pair(throughput.auto_scaled), f"{dollars(throughput.auto_scaled.dollars):,}"),
        ("provisioned, for the peak", _pair(throughput.fixed), f"{dollars(throughput.fixed.dollars):,}"),
    ])  # fmt: skip


def _pair(units: Provisioned) -> str:
    return f"{units.write:,} write, {units.read:,} read"


def _report_savings(found: Estimate) -> None:
    say("What is spared, and what could be")
    say_table(("by", "", "dollars"), [
        (saving.name, "saves" if saving.is_on else "would save", f"{saving.dollars:,}") for saving in found.savings
    ])  # fmt: skip


def _report_consumption(consumption: Consumption) -> None:
    part = consumption.denied / consumption.checks if consumption.checks else Fraction(0)
    say(f"{in_short(consumption.checks)} checks a month at this rate, {float(part):.1%} of them refused")
    if not consumption.is_measured:
        note("a call is taken for one unit; with consumed=true in the store's URL DynamoDB counts them")


def _document(found: Estimate, units: Units, prices: Prices, consumption: Consumption | None) -> dict[str, Any]:
    throughput = found.throughput
    return {
        "region": prices.region,
        "as_of": prices.as_of,
        "currency": "USD",
        "total": found.total,
        "lines": found.lines,
        "savings": found.savings,
        "throughput": {
            "on_demand": dollars(throughput.on_demand),
            "auto_scaled": _provisioned(throughput.auto_scaled),
            "fixed": _provisioned(throughput.fixed),
        },
        "units": {"writes": round(units.writes), "reads": round(units.reads)},
        "measured": None if consumption is None else {
            "seconds": round(consumption.seconds),
            "checks": round(consumption.checks),
            "denied": round(consumption.denied),
            "units_by_dynamodb": consumption.is_measured,
        },
    }  # fmt: skip


def _provisioned(units: Provisioned) -> dict[str, Any]:
    return {"write": units.write, "read": units.read, "dollars": dollars(units.dollars)}
