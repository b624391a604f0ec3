"""The log's settings, checked once, and how it stands."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, TypedDict

from ratelimit.errors import ConfigError
from ratelimit.names import check_action
from ratelimit.settings import keep, one_of, stat

Durability: TypeAlias = Literal["memory", "journal"]
WhenFull: TypeAlias = Literal["wait", "spill", "drop"]


class UsageOptions(TypedDict, total=False):
    """The settings by name, for those who write them as keyword arguments."""

    durability: Durability | None
    journal_dir: str | os.PathLike[str] | None
    when_full: WhenFull | None
    max_queue: int
    max_wait: float
    flush_interval: float
    in_flight: int
    grace: float
    adopt_interval: float
    segment_bytes: int
    journal_bytes: int
    timelines: Iterable[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageSettings:
    """How the log keeps what it accepted. Raise `ConfigError` naming the bad setting.

    `durability`      `"memory"`: what is not in the table yet goes with the process. `"journal"`: it is on the local
                      disk before `record` returns, and written by the next process that opens the same journal. By
                      default `"journal"` where there is a journal directory.
    `journal_dir`     a directory on a local file system; processes of one host may share it.
    `when_full`       `"wait"` for room, at most `max_wait` seconds; `"spill"` to the journal; `"drop"`. By default
                      `"spill"` where there is a journal directory, and else `"wait"`. As long as others wait in the
                      journal, half full is full enough to spill: so these have their turn.
    `max_queue`       events in memory at most, about 1 KB each.
    `flush_interval`  seconds after which an event goes out even if no 25 have come together.
    `in_flight`       batches on their way at once.
    `grace`           seconds that `close` waits for the table; for a disk that hangs, 5 more.
    `adopt_interval`  seconds between looks for journals of processes that have died.
    `segment_bytes`   size of a journal's segment; what a segment holds may be written again after a crash.
    `journal_bytes`   size of the journal at most; beyond it is treated as a full disk.
    `timelines`       actions whose events are found by `timeline` too: each costs a write unit more. A DynamoDB table
                      needs the index GSI2 for them.
    """

    durability: Durability | None = None
    journal_dir: str | os.PathLike[str] | None = None
    when_full: WhenFull | None = None
    max_queue: int = 10_000
    max_wait: float = 1.0
    flush_interval: float = 0.2
    in_flight: int = 4
    grace: float = 10.0
    adopt_interval: float = 30.0
    segment_bytes: int = 1024 * 1024
    journal_bytes: int = 1024 * 1024 * 1024
    timelines: Iterable[str] = ()

    def __post_init__(self) -> None:
        if self.durability is not None:
            keep(self, "durability", one_of(Durability))
        if self.when_full is not None:
            keep(self, "when_full", one_of(WhenFull))
        for name in ("max_queue", "in_flight", "segment_bytes", "journal_bytes"):
            if type(value := getattr(self, name)) is not int or value < 1:
                raise ConfigError(name, f"must be a whole number of at least 1, not {value!r}")
        for name in ("max_wait", "flush_interval", "grace", "adopt_interval"):
            if type(value := getattr(self, name)) not in (int, float) or not 0 <= value <= 3600:
                raise ConfigError(name, f"must be seconds from 0 to 3600, not {value!r}")
        for action in self.timelines:
            check_action(action)
        if self.journal_dir is None and "journal" in (self.durability, "journal" if self.when_full == "spill" else ""):
            raise ConfigError("journal_dir", "is missing; name a directory on a local disk for the journal")
        if self.journal_dir is not None:  # or it would be another one where the process changes its own
            keep(self, "journal_dir", lambda directory: Path(directory).absolute())

    @property
    def directory(self) -> Path | None:
        """Return where the journal is; None where there is none."""
        return None if self.journal_dir is None else Path(self.journal_dir)

    @property
    def kept_by(self) -> Durability:
        """Return the durability, by default too."""
        return self.durability or ("memory" if self.journal_dir is None else "journal")

    @property
    def full(self) -> WhenFull:
        """Return what happens when the queue is full, by default too."""
        return self.when_full or ("wait" if self.journal_dir is None else "spill")


@dataclass(slots=True)
class UsageStats:
    """Numbers of events since the log was made. Each bound that may be hit has a counter that shows it was.

    They will be written, unless the process ends before (without a journal), or `dropped` says so: each time with a
    line in the log. What a record that had returned wrote is never among what is `torn`.
    """

    accepted: int = stat("Usage events taken over.")
    written: int = stat("Usage events in the table.")
    indexed: int = stat("Usage events in the table's second index as well, for a timeline.")
    retried: int = stat("Usage events sent again.")
    dropped: int = stat("Usage events lost: no room, no time left at the end, or refused by the store.")
    spilled: int = stat("Usage events kept in the journal only, because the queue was full.")
    replayed: int = stat("Usage events found in the journal of a process that ended before.")
    erased: int = stat("Usage events in a journal that were not written, because the user was erased meanwhile.")
    unjournaled: int = stat("Usage events meant for the journal that the disk did not take.")
    torn: int = stat("Segments of the journal that ended in a broken record.")
    damaged: int = stat("Segments of the journal that were damaged before their end, and kept.")
    depth: int = stat("Usage events that wait in memory.", gauge=True)
    in_flight: int = stat("Usage events on their way to the table.", gauge=True)
    journal_bytes: int = stat("Bytes in the journal.", gauge=True)
