"""From another home to the one table: plans, users, usage events and running counters, resumable, verified.

Read rows → convert them → write what is not there yet, at a given rate, with a checkpoint. The source is only read.
"""

from ratelimit.migrate.checkpoint import Checkpoint, Counts, ProgressListener
from ratelimit.migrate.forecast import Forecast, dry_run
from ratelimit.migrate.mapping import Mapping, read_mapping
from ratelimit.migrate.plan import MigrationPlan, migration_settings
from ratelimit.migrate.rows import ENTITIES, Entity, Source, SourceRefused, SourceUnavailable
from ratelimit.migrate.runner import BadRow, Done, run
from ratelimit.migrate.undo import Undone, UndoPlan, undo
from ratelimit.migrate.verify import Difference, Verdict, verify

__all__ = [
    "ENTITIES",
    "BadRow",
    "Checkpoint",
    "Counts",
    "Difference",
    "Done",
    "Entity",
    "Forecast",
    "Mapping",
    "MigrationPlan",
    "ProgressListener",
    "Source",
    "SourceRefused",
    "SourceUnavailable",
    "UndoPlan",
    "Undone",
    "Verdict",
    "dry_run",
    "migration_settings",
    "read_mapping",
    "run",
    "undo",
    "verify",
]
