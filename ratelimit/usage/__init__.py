"""The usage log: every event kept once, read by user, action and day."""

from ratelimit.usage.log import UsageLog
from ratelimit.usage.options import Settings
from ratelimit.usage.queries import EventPage
from ratelimit.usage.reports import Reconciliation
from ratelimit.usage.stats import UsageStats

__all__ = ["EventPage", "Reconciliation", "Settings", "UsageLog", "UsageStats"]
