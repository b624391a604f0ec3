"""`ratelimit cost`: its options, made into a workload."""

# No postponed annotations in the commands: typer reads them when the program runs.
from typing import cast

from ratelimit.cli.cost import options
from ratelimit.cli.cost.report import report
from ratelimit.cli.cost.scrape import scrape
from ratelimit.cli.output import note
from ratelimit.cli.settings import JsonOption
from ratelimit.clock import SECOND, SystemClock
from ratelimit.cost import (
    DEFAULT_REGION,
    SHORTEST,
    Consumption,
    LogMode,
    Units,
    Workload,
    amount,
    estimate,
    load_prices,
    number,
    read_metrics,
    share,
    units_of,
)
from ratelimit.errors import ConfigError


def cost(
    checks: options.Checks = None,
    denied: options.Denied = "0%",
    users: options.Users = "0",
    actions: options.Actions = "1",
    windows: options.Windows = "1",
    events: options.Events = None,
    log: options.Log = "none",
    log_sample: options.LogSample = "100%",
    days: options.Days = "90",
    event_bytes: options.EventBytes = "300",
    reads: options.Reads = "0",
    cached: options.Cached = "50%",
    coalesced: options.Coalesced = "0%",
    leased: options.Leased = "0%",
    lease: options.Lease = "10",
    tasks: options.Tasks = "0",
    vcpu: options.Vcpu = "0.5",
    memory: options.Memory = "1",
    region: options.Region = DEFAULT_REGION,
    prices: options.Prices = None,
    peak: options.Peak = "3",
    utilisation: options.Utilisation = "70%",
    from_metrics: options.FromMetrics = None,
    as_json: JsonOption = False,
) -> None:
    """What a month costs on AWS: writes, reads, storage, recovery, and the sidecar if there is one.

    By a workload in numbers, or by what a running service has consumed since it started. The prices are dated, and not
    fetched: check them before you rely on it.

    Examples:

        ratelimit cost --checks 50M --denied 20% --users 100k --log all --log-sample 10%

        ratelimit cost --checks 2G --tasks 4 --region eu-west-1 --json

        ratelimit cost --from-metrics http://127.0.0.1:8081/metrics --users 100k
    """
    if (checks is None) == (from_metrics is None):
        raise ConfigError("--checks", "say how many a month, as in 50M, or read them with --from-metrics URL")
    workload = Workload(
        checks=amount("--checks", checks or "0"),
        denied=share("--denied", denied),
        users=amount("--users", users),
        actions=amount("--actions", actions),
        windows=amount("--windows", windows),
        logged=None if events is None else amount("--events", events),
        log=cast(LogMode, log),
        log_sample=share("--log-sample", log_sample),
        days_kept=amount("--days", days),
        event_bytes=amount("--event-bytes", event_bytes),
        reads=amount("--reads", reads),
        repeated=share("--cached", cached),
        coalesced=share("--coalesced", coalesced),
        leased=share("--leased", leased),
        lease=amount("--lease", lease),
        tasks=amount("--tasks", tasks),
        vcpu=number("--vcpu", vcpu),
        memory=number("--memory", memory),
    )
    rates = load_prices(region, prices)
    consumption = None if from_metrics is None else _consumption(from_metrics, workload)
    units: Units = units_of(workload) if consumption is None else consumption.units
    times, aim = number("--peak", peak), share("--utilisation", utilisation)
    found = estimate(units, workload, rates, peak=times, utilisation=aim)
    report(found, units, rates, consumption, as_json=as_json)


def _consumption(url: str, workload: Workload) -> Consumption:
    consumption = read_metrics(scrape(url), SystemClock().now() / SECOND, workload)
    if consumption.seconds < SHORTEST:
        note(f"it has run for {consumption.seconds:.0f} s only: the month may look quite different")
    return consumption
