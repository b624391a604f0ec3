"""From another home to the one table: plans, users, usage events and running counters, resumable, verified.

Read rows → convert them → write what is not there yet, at a given rate, with a checkpoint. The source is only read.
"""

from ratelimit.migrate.checkpoint import Checkpoint, Counts
from ratelimit.migrate.diff import Difference, Verdict
from ratelimit.migrate.forecast import Forecast
from ratelimit.migrate.mapping import Mapping, read_mapping
from ratelimit.migrate.migration import Done, Order, dry_run, run
from ratelimit.migrate.reader import Listener
from ratelimit.migrate.rows import ENTITIES, Entity, Source, SourceRefused, SourceUnavailable
from ratelimit.migrate.runner import BadRow
from ratelimit.migrate.sources import patient
from ratelimit.migrate.undo import Undone, UndoOrder, undo
from ratelimit.migrate.verify import verify

__all__ = [
    "ENTITIES",
    "BadRow",
    "Checkpoint",
    "Counts",
    "Difference",
    "Done",
    "Entity",
    "Forecast",
    "Listener",
    "Mapping",
    "Order",
    "Source",
    "SourceRefused",
    "SourceUnavailable",
    "UndoOrder",
    "Undone",
    "Verdict",
    "dry_run",
    "patient",
    "read_mapping",
    "run",
    "undo",
    "verify",
]
