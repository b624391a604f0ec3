"""The usage log: every event kept once, read by user, action and day, taken out and brought in."""

from ratelimit.usage.export import export_events
from ratelimit.usage.formats import Csv, Jsonl
from ratelimit.usage.importing import BadLines, Imported, import_events
from ratelimit.usage.log import UsageLog
from ratelimit.usage.options import Settings, UsageStats
from ratelimit.usage.queries import EventPage
from ratelimit.usage.reports import Reconciliation, TopUser
from ratelimit.usage.sinks import Asked, Checkpoint, File, Stream

__all__ = [
    "Asked",
    "BadLines",
    "Checkpoint",
    "Csv",
    "EventPage",
    "File",
    "Imported",
    "Jsonl",
    "Reconciliation",
    "Settings",
    "Stream",
    "TopUser",
    "UsageLog",
    "UsageStats",
    "export_events",
    "import_events",
]
