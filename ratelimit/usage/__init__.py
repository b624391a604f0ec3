"""The usage log: every event kept once, read by user, action and day, taken out and brought in."""

from ratelimit.usage.export import ExportCheckpoint, ExportQuery, File, StreamSink, export_events
from ratelimit.usage.formats import Csv, Jsonl
from ratelimit.usage.importing import BadLines, Imported, import_events
from ratelimit.usage.log import UsageLog
from ratelimit.usage.queries import EventPage
from ratelimit.usage.reports import Reconciliation, TopUser
from ratelimit.usage.settings import UsageSettings, UsageStats

__all__ = [
    "BadLines",
    "Csv",
    "EventPage",
    "ExportCheckpoint",
    "ExportQuery",
    "File",
    "Imported",
    "Jsonl",
    "Reconciliation",
    "StreamSink",
    "TopUser",
    "UsageLog",
    "UsageSettings",
    "UsageStats",
    "export_events",
    "import_events",
]
