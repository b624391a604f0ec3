"""A line that says how far it is: rewritten in place on a terminal, and now and then a new one elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Final, TextIO

from loadtest.load.samples import Batch
from loadtest.quantiles import quantiles
from loadtest.run.tally import Tally

_EVERY: Final = 5.0
_WINDOW: Final = 5_000
_WIDTH: Final = 100


class Progress:
    """Of one group. Speaks on stderr."""

    def __init__(self, tally: Tally, out: TextIO = sys.stderr) -> None:
        self._tally = tally
        self._out = out
        self._began = time.monotonic()
        self._told = 0.0 if out.isatty() else self._began

    def tell(self, worker: str, batch: Batch) -> None:
        """A batch has come."""
        self._tally.add(worker, batch)
        now = time.monotonic()
        if self._out.isatty():
            self._out.write(f"\r{self.line():<{_WIDTH}}")
            self._out.flush()
        elif now - self._told >= _EVERY:
            self._told = now
            self._out.write(f"{self.line()}\n")
            self._out.flush()

    def end(self) -> None:
        """The last one stays."""
        self._out.write(f"{chr(13) if self._out.isatty() else ''}{self.line():<{_WIDTH}}\n")
        self._out.flush()

    def line(self) -> str:
        """The latencies are those of the latest few seconds."""
        tally, plan = self._tally, self._tally.plan
        latest = tally.samples[-_WINDOW:]
        if not latest:
            return f"{plan.group:<10} warming up"
        at = max(sample.at for sample in latest[-100:]) / 1e6
        answered = [sample.latency for sample in latest if sample.outcome != "failed"]
        failed = sum(sample.outcome == "failed" for sample in tally.samples)
        found = quantiles(answered)
        times = f"p50 {found.p50:.2f}  p99 {found.p99:.2f} ms" if found else "no answers"
        rate = len(tally.samples) / at if at else 0.0
        how_far = f"{plan.group:<10} {at:5.0f} of {plan.duration:.0f} s"
        return f"{how_far}  {rate:6.1f}/s of {plan.rate:g}  {times}  {failed} errors"
