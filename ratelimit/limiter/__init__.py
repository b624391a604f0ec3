"""`Limiter`, and what it is made of: plans, beliefs, the counters that runs them, the circuit around the store."""

from ratelimit.limiter.alerts import Alert
from ratelimit.limiter.limiter import Limiter

__all__ = ["Alert", "Limiter"]
