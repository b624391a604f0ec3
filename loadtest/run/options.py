"""What a run was asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..plan import GROUPS, Group

ENGINES: Final = ("localstack", "dynamodb-local", "ministack", "memory")
BUDGETS: Final = Path(__file__).parents[1] / "budgets.toml"
REPORT: Final = Path("loadtest", "report")
RATES: Final = {"memory": 200.0, "ministack": 150.0, "dynamodb-local": 150.0, "localstack": 40.0, "dynamodb": 150.0}
"""Requests a second that each keeps up with on two cores, which it shares with all the rest."""


class Trouble(Exception):
    """The run cannot be; the message says why, and what to do. `status` is the exit status."""

    def __init__(self, message: str, *, status: int = 2) -> None:
        self.status = status
        super().__init__(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Times are in seconds."""

    groups: tuple[Group, ...] = GROUPS
    engine: str = "localstack"
    store: str | None = None
    """A table of the user's own, in the place of an engine."""
    foreign: bool = False
    """Whether it may hold what no load test has written."""
    users: int = 64
    rate: float | None = None
    """By default what the engine keeps up with."""
    duration: float = 60.0
    warm_up: float = 5.0
    processes: int = 1
    """Of Locust, on this machine."""
    expect_workers: int = 0
    """Workers of Locust that are started by hand, here or elsewhere."""
    master_port: int = 0
    """Where those find us."""
    host: str = "127.0.0.1"
    """Where our servers listen."""
    seed: int = 1
    report: Path = REPORT
    budgets: Path = BUDGETS
    profile: str | None = None
    """A section of the budgets that goes over the others: `smoke`."""
    command: str = ""

    @property
    def place(self) -> str:
        """The engine's name, or `dynamodb` for a table of one's own."""
        return self.engine if self.store is None else "dynamodb"

    @property
    def paced(self) -> float:
        """Requests a second."""
        return self.rate or RATES[self.place]
