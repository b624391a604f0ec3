"""The usage log: every event kept once, read by user, action and day, taken out and brought in."""

from ratelimit.usage.log import UsageLog
from ratelimit.usage.queries import EventPage

__all__ = ["EventPage", "UsageLog"]
