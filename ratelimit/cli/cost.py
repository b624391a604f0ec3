"""`ratelimit cost`: what a month costs, by a workload in numbers or by a running service's metrics."""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Final, cast

import typer

from ratelimit.cli.admin_client import TOKEN, ask
from ratelimit.cli.options import answering
from ratelimit.cli.output import Answer, in_words, note, say, say_table
from ratelimit.clock import SECOND, SystemClock
from ratelimit.cost.estimate import DEFAULT_REGION, Estimate, Prices, Provisioned, dollars, estimate, load_prices
from ratelimit.cost.metrics import SHORTEST, Consumption, read_metrics
from ratelimit.cost.units import LogMode, Units, Workload, amount, in_short, number, replicated, share, units_of
from ratelimit.errors import ConfigError

_WORKLOAD: Final = "The month"
_SPARED: Final = "What is spared"
_SERVICE: Final = "The sidecar"
_PRICES: Final = "Prices"


def _option(metavar: str, help: str, panel: str | None = None) -> Any:
    return typer.Option(metavar=metavar, help=help, rich_help_panel=panel)


@dataclass(frozen=True)
class WorkloadOptions:
    """The month in numbers, what of it is spared, and the sidecar."""

    checks: Annotated[str | None, _option("N", "Checks, the refused included: 50M, 1.5k.", _WORKLOAD)] = None
    denied: Annotated[str, _option("SHARE", "Of them: 20%.", _WORKLOAD)] = "0%"
    users: Annotated[str, _option("N", "That come.", _WORKLOAD)] = "0"
    actions: Annotated[str, _option("N", "Of each user.", _WORKLOAD)] = "1"
    windows: Annotated[str, _option("N", "In a policy: more cost storage, no writes.", _WORKLOAD)] = "1"
    events: Annotated[str | None, _option("N", "Of the usage log; by default as --log says.", _WORKLOAD)] = None
    log: Annotated[str, _option("MODE", "all, allowed, denied or none.", _WORKLOAD)] = "none"
    log_sample: Annotated[str, _option("SHARE", "Of the refused, those logged.", _WORKLOAD)] = "100%"
    timeline: Annotated[str, _option("SHARE", "Of the events, those on a timeline.", _WORKLOAD)] = "0%"
    days: Annotated[str, _option("N", "That an event is kept.", _WORKLOAD)] = "90"
    event_bytes: Annotated[str, _option("N", "Of an event.", _WORKLOAD)] = "300"
    reads: Annotated[str, _option("N", "Peeks, users and plans, queries.", _WORKLOAD)] = "0"
    cached: Annotated[str, _option("SHARE", "Of the refused, those the denial cache knew.", _SPARED)] = "50%"
    coalesced: Annotated[str, _option("SHARE", "Of the admitted, those in another's write.", _SPARED)] = "0%"
    leased: Annotated[str, _option("SHARE", "Of the admitted, those of leases.", _SPARED)] = "0%"
    lease: Annotated[str, _option("N", "Units of a lease.", _SPARED)] = "10"
    replicas: Annotated[str, _option("N", "Of the table, in so many regions, all at this one's prices.")] = "1"
    tasks: Annotated[str, _option("N", "On Fargate, behind a load balancer.", _SERVICE)] = "0"
    vcpu: Annotated[str, _option("N", "Of a task.", _SERVICE)] = "0.5"
    memory: Annotated[str, _option("GB", "Of a task.", _SERVICE)] = "1"

    def read(self) -> Workload:
        """Return the month that they describe. Raises `ConfigError`."""
        return Workload(
            checks=amount("--checks", self.checks or "0"),
            denied=share("--denied", self.denied),
            users=amount("--users", self.users),
            actions=amount("--actions", self.actions),
            windows=amount("--windows", self.windows),
            logged=None if self.events is None else amount("--events", self.events),
            log=cast(LogMode, self.log),
            log_sample=share("--log-sample", self.log_sample),
            timeline=share("--timeline", self.timeline),
            days_kept=amount("--days", self.days),
            event_bytes=amount("--event-bytes", self.event_bytes),
            reads=amount("--reads", self.reads),
            repeated=share("--cached", self.cached),
            coalesced=share("--coalesced", self.coalesced),
            leased=share("--leased", self.leased),
            lease=amount("--lease", self.lease),
            replicas=amount("--replicas", self.replicas),
            tasks=amount("--tasks", self.tasks),
            vcpu=number("--vcpu", self.vcpu),
            memory=number("--memory", self.memory),
        )


@answering
def cost(
    *,
    given: WorkloadOptions,
    region: Annotated[str, _option("NAME", "", _PRICES)] = DEFAULT_REGION,
    prices: Annotated[Path | None, _option("FILE", "Instead of the file that comes along.", _PRICES)] = None,
    peak: Annotated[str, _option("TIMES", "The busiest minutes, by the average.", _PRICES)] = "3",
    utilisation: Annotated[str, _option("SHARE", "That auto scaling aims at.", _PRICES)] = "70%",
    from_metrics: Annotated[
        str | None, _option("URL", "Of a running sidecar's admin listener, instead of --checks and its like.")
    ] = None,
) -> Answer:
    """What a month costs on AWS: writes, reads, storage, recovery, and the sidecar if there is one.

    By a workload in numbers, or by what a running service has consumed since it started. The prices are dated, and not
    fetched: check them before you rely on it.

    Examples:

        ratelimit cost --checks 50M --denied 20% --users 100k --log all --log-sample 10%

        ratelimit cost --checks 2G --tasks 4 --region eu-west-1 --json

        ratelimit cost --from-metrics http://127.0.0.1:8081/metrics --users 100k
    """
    if (given.checks is None) == (from_metrics is None):
        raise ConfigError("--checks", "say how many a month, as in 50M, or read them with --from-metrics URL")
    workload = given.read()
    rates = load_prices(region, prices)
    consumption = None if from_metrics is None else _consumption(from_metrics, workload)
    units: Units = units_of(workload) if consumption is None else consumption.units
    units = replicated(units, workload.replicas)
    times, aim = number("--peak", peak), share("--utilisation", utilisation)
    found = estimate(units, workload, rates, peak=times, utilisation=aim)
    notes = ["prices are typed in, not fetched, without free tier, taxes and traffic: check before you rely on it"]
    return Answer(_document(found, units, rates, consumption), lambda: report(found, rates, consumption), notes)


def _consumption(url: str, workload: Workload) -> Consumption:
    text = ask(url, "metrics", token=os.environ.get(TOKEN), option="--from-metrics").decode("utf-8", "replace")
    consumption = read_metrics(text, SystemClock().now() / SECOND, workload)
    if consumption.seconds < SHORTEST:
        note(f"it has run for {consumption.seconds:.0f} s only: the month may look quite different")
    return consumption


# How an estimate is shown.


def report(found: Estimate, prices: Prices, consumption: Consumption | None) -> None:
    """Print an estimate."""
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
