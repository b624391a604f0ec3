"""The figures as a picture. matplotlib is imported here and nowhere else: the simulator runs without it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loadtest.simulate.simulation import Case, Result
from loadtest.simulate.table import WRITES_A_SECOND


def plot(case: Case, results: Sequence[Result], path: Path) -> None:
    """Three panels: writes on the hottest item over time, latency, and what became of the checks."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (writes, latency, fate) = pyplot.subplots(1, 3, figsize=(16, 5), layout="constrained")
    figure.suptitle(
        f"{case.processes:,} processes, {case.rate:,.0f} checks/s, {case.keys} keys, {case.limit} a user, "
        f"seed {case.seed}"
    )
    names = [result.mode for result in results]
    for result in results:
        # The last second is not a whole one.
        line = result.attempted[: max(1, int(case.seconds))]
        writes.plot(range(len(line)), line, marker="o", label=result.mode)
    writes.axhline(WRITES_A_SECOND, color="black", linestyle="--", label="what one item takes")
    writes.set(title="writes sent to the hottest item", xlabel="second", ylabel="writes/s", yscale="symlog")
    writes.set_ylim(bottom=0)
    writes.legend()

    for shift, (name, values) in enumerate(
        {"p50": [r.p50 for r in results], "p99": [r.p99 for r in results], "p99.9": [r.p999 for r in results]}.items()
    ):
        bars = latency.bar([at + 0.27 * (shift - 1) for at in range(len(names))], values, width=0.25, label=name)
        latency.bar_label(bars, fmt="%.1f", fontsize=8)
    latency.set(title="latency of a check", ylabel="ms", xticks=range(len(names)), xticklabels=names)
    latency.legend()

    for shift, (name, values) in enumerate(
        {
            "write units per 100 checks": [100 * r.units_per_check for r in results],
            "unavailable, % of checks": [100 * r.unavailable for r in results],
            "under-admission, % of quota": [100 * r.under_admission for r in results],
        }.items()
    ):
        bars = fate.bar([at + 0.27 * (shift - 1) for at in range(len(names))], values, width=0.25, label=name)
        fate.bar_label(bars, fmt="%.2g", fontsize=8)
    fate.set(title="what it costs", xticks=range(len(names)), xticklabels=names)
    fate.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
